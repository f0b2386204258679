"""One picture of the scheduler's purpose: the same load on the real server under `fcfs` and under `bros`.

    python -m bench.demo --out docs/img/demo.svg

A backlog of best-effort requests arrives at once while real-time requests keep coming. Both policies get the same
seeded arrivals, each on a server of its own. The machine's speed is measured first; it determines the number of
arrivals and the objectives. The numbers behind the picture go to `--results`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from backend.core.numbers import positive, whole
from bench.capacity import NUM_DECODES, Capacity, measure, suited
from bench.common.command import as_command
from bench.common.provenance import provenance
from bench.common.score import RequestRecord
from bench.serve import Setup, measure_policy
from client.colors import ALARM_COLOR, BE_COLOR, RT_COLOR

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "bros", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
SETUP = Setup("demo", warmup_s=0.0, duration_s=60.0, drain_s=15.0)
POLICIES = ("fcfs", "bros")
PALE = 0.4  # opacity of what waits


@as_command
def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--duration-s", type=positive, default=SETUP.duration_s, help="of load on each server, s (default: %(default)g)"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of the load (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/img/demo.svg"), help="picture to write (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("bench/results/demo.json"), help="numbers to write (default: %(default)s)"
    )
    arguments = parser.parse_args()
    capacity = measure(SETUP.flags)
    setup = suited(capacity, replace(SETUP, duration_s=arguments.duration_s))
    print(describe(capacity, setup), file=sys.stderr)
    runs = {}
    for policy in POLICIES:
        print(f"serving with {policy} for {setup.duration_s:g} s", file=sys.stderr)
        runs[policy] = measure_policy(policy, setup, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(runs, setup, arguments.out)
    results = {policy: result for policy, (result, _) in runs.items()}
    document = {"provenance": provenance(), "capacity": asdict(capacity), "runs": results}
    arguments.results.write_text(json.dumps(document, indent=1) + "\n")
    print(arguments.out)
    return 0


def describe(capacity: Capacity, setup: Setup) -> str:
    """Return the measured speed and the resulting load in words."""
    return (
        f"this machine reads {capacity.prefill_tokens_per_s:,.0f} prompt tokens/s and decodes in "
        f"{capacity.decode_s * 1e3:.1f} ms alone, {capacity.batch_decode_s * 1e3:.1f} ms in a batch of {NUM_DECODES}; "
        f"so {setup.rt_rate:g} real-time requests/s beside {setup.be_backlog} documents, prompts at "
        f"{setup.prompt_scale:.0%} of their usual length, objectives {setup.slos.ttft_slo_s:g} s to the first token "
        f"and {setup.slos.tpot_slo_s * 1e3:g} ms for each further one"
    )


def draw(runs: dict[str, tuple[dict[str, Any], list[RequestRecord]]], setup: Setup, path: Path) -> None:
    """Left to right the policies; above, when RT requests waited and streamed; below, BE tokens per second."""
    figure, axes = plt.subplots(
        2, len(runs), figsize=(10, 5), sharex=True, sharey="row", height_ratios=(2.2, 1), layout="constrained"
    )
    end_s = setup.duration_s + setup.drain_s
    for column, (policy, (result, records)) in enumerate(runs.items()):
        waits, best_effort = axes[0][column], axes[1][column]
        rt = [record for record in records if record.is_rt]
        for place, record in enumerate(rt):
            _draw_request(waits, place, record, setup)
        slos = setup.slos
        met = sum(record.meets_ttft(slos) and record.meets_tpot(slos) for record in rt)
        title = f"{policy}: {met} of {len(rt)} real-time requests within {slos.ttft_slo_s:g} s, "
        waits.set_title(f"{title}{slos.tpot_slo_s * 1e3:g} ms", fontsize=10)
        seconds = np.arange(0.0, end_s + 1.0)
        be_times_s = [time_s for record in records if not record.is_rt for time_s in record.token_times_s]
        rate = np.convolve(np.histogram(be_times_s, seconds)[0], np.ones(5) / 5, mode="same")
        best_effort.fill_between(seconds[:-1], rate, color=BE_COLOR)
        best_effort.set_xlabel(f"time, s (best effort: {result['be_tokens_per_s']:.0f} tokens/s)")
    axes[0][0].set_ylabel("real-time requests\npale: waiting · full: streaming · red: late")
    axes[1][0].set_ylabel("best-effort tokens/s")
    axes[0][0].set_yticks([])
    plt.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_request(axis: Any, place: int, record: RequestRecord, setup: Setup) -> None:
    """A bar from arrival to the first token, and one from there to the last."""
    end_s = setup.duration_s + setup.drain_s
    first_s = record.token_times_s[0] if record.token_times_s else end_s
    last_s = record.token_times_s[-1] if record.token_times_s else end_s
    is_late = not record.meets_ttft(setup.slos)
    is_slow = not record.meets_tpot(setup.slos)
    waiting = {"color": ALARM_COLOR if is_late else RT_COLOR, "alpha": PALE}
    axis.barh(place, first_s - record.arrival_s, left=record.arrival_s, **waiting)
    axis.barh(place, last_s - first_s, left=first_s, color=ALARM_COLOR if is_slow else RT_COLOR)


if __name__ == "__main__":
    sys.exit(main())
