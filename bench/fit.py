"""Fit a step model to the real engine on this machine, and say how wrong the simulator is with it.

    python -m bench.fit steps --out bench/results/step_model_cpu.json
    python -m bench.fit error --steps bench/results/step_model_cpu.json --out bench/results/simulator_error.json

`steps` starts a server, loads it, records what each step of its engine computed and how long it took, and fits the
roofline of `bench.step_models` to 70 % of the steps, and the linear coefficients that the scheduler's own latency model
takes (`scheduler.latency_coefficients`). `error` measures RT under BE load on a live server, simulates the same
arrivals with the fitted model, and compares.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.fit_step_models import fit, predict
from bench.provenance import provenance
from bench.scenario import Scenario
from bench.serve import ASKED, MAX_SEQS, Setup, measure_policy
from bench.simulate import Replay, Simulation
from bench.step_models import Coefficients, Pair, StepWork

HELD_OUT = 0.3
_WARM_UP_S = 2.0  # kernels compile and pages come in
_BETWEEN_S = 0.01  # an engine that does nothing for longer between two steps was idle
# A backlog, and when it is done real-time alone; other seeds than those that the error is measured on.
_RECORDED = Setup("fit", rt_rate=1.0, be_backlog=25, drain_s=5.0)
_SEED_OFFSET = 1000
# Moderate: the machine is busy, but not so full that the queue, and not the steps, decides the latency.
LOADS = (Setup("rt_0.4_be_0.2", rt_rate=0.4, be_rate=0.2), Setup("rt_0.8_be_0.4", rt_rate=0.8, be_rate=0.4))


def record_steps(setup: Setup, seed: int) -> tuple[list[StepWork], NDArray[np.float64]]:
    """Load a live server; return what the steps of its engine computed and how long they took, in ms."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.jsonl"
        measure_policy("bros", setup, seed, [f"service.step_file={path}"])
        return read_steps(path.read_text())


def read_steps(text: str) -> tuple[list[StepWork], NDArray[np.float64]]:
    """Read what a server wrote to `service.step_file`, but for its warm-up.

    Where one step follows another, a step lasts from end to end: what the engine does between two is in it.
    """
    steps = list(map(json.loads, text.splitlines()))
    works, times_ms = [], []
    for before, step in pairwise(steps):
        if step["end_s"] - steps[0]["end_s"] < _WARM_UP_S:
            continue
        period_s = step["end_s"] - before["end_s"]
        is_next = period_s < step["duration_s"] + _BETWEEN_S
        works.append(StepWork.of_sequences(step["starts"], step["counts"], step["num_copied"]))
        times_ms.append(1e3 * (period_s if is_next else step["duration_s"]))
    return works, np.asarray(times_ms)


def fit_steps(works: Sequence[StepWork], times_ms: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Fit both forms to a random 70 % of the steps and return the document of the fitted model."""
    order = np.random.default_rng(seed).permutation(len(works))
    num_fitted = int(len(works) * (1 - HELD_OUT))
    train, test = order[:num_fitted], order[num_fitted:]
    coefficients = fit([works[i] for i in train], times_ms[train])
    linear, linear_error = _fit_linear(works, times_ms, train, test)
    errors = np.abs(predict(coefficients, [works[i] for i in test]) / times_ms[test] - 1.0) * 100
    return {
        "provenance": provenance(),
        "num_steps": len(works),
        "coefficients": asdict(coefficients),
        "heldout_error": {"mean_pct": float(errors.mean()), "p95_pct": float(np.percentile(errors, 95))},
        "latency_coefficients": linear,
        "linear_heldout_error": linear_error,
    }


def compare(setup: Setup, coefficients: Coefficients, seed: int) -> dict[str, Any]:
    """Measure `setup` on a live server and simulate the same arrivals; return both and the relative errors."""
    measured, _ = measure_policy("bros", setup, seed)
    mix = setup.mix(seed)
    pair = Pair("fitted", "this machine", coefficients, setup.kv_tokens, host_overhead_s=0.0, host_copy_s_per_token=0.0)
    simulated = Simulation(_scenario(setup, seed), Replay(pair, mix.rt, mix.be))
    simulated.run()
    scores = simulated.result()
    comparisons = {}
    for what, (name, point) in {
        "TPOT p50, s": ("tpot_s", "p50"),
        "TPOT p90, s": ("tpot_s", "p90"),
        "TTFT p50, s": ("ttft_s", "p50"),
        "TTFT p90, s": ("ttft_s", "p90"),
    }.items():
        real, made_up = measured[name][point], scores[name][point]
        comparisons[what] = {"measured": real, "simulated": made_up, "error_ratio": made_up / real - 1.0}
    return {"name": setup.name, "seed": seed, "foreign_cores": measured["foreign_cores"], "comparisons": comparisons}


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("steps", "error"))
    parser.add_argument("--duration-s", type=float, default=60.0, help="steps are recorded for so long (default: 60)")
    parser.add_argument("--steps", type=Path, help="`error`: the result of `steps`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.what == "steps":
        setup = replace(_RECORDED, duration_s=arguments.duration_s)
        document = fit_steps(*record_steps(setup, _SEED_OFFSET + arguments.seed), seed=arguments.seed)
    else:
        if arguments.steps is None:
            parser.error("error needs --steps FILE")
        model = json.loads(arguments.steps.read_text())
        loads = [compare(setup, Coefficients(**model["coefficients"]), arguments.seed) for setup in LOADS]
        document = {"provenance": provenance(), "step_model": model, "loads": loads}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document.get("heldout_error") or document["loads"]), file=sys.stderr)
    return 0


def _fit_linear(
    works: Sequence[StepWork], times_ms: NDArray[np.float64], train: NDArray[np.int64], test: NDArray[np.int64]
) -> tuple[list[float], float]:
    """The five coefficients of backend.policy.latency in seconds, and their mean held-out error as a ratio."""
    rows = [(1.0, w.num_new_tokens, w.decode_context, w.prefill_pairs, w.num_copied) for w in works]
    features, times_s = np.asarray(rows, np.float64), times_ms * 1e-3
    scale = np.maximum(features[train].max(axis=0), 1.0)
    solution, _ = nnls(features[train] / scale / times_s[train, None], np.ones(len(train)))
    errors = np.abs(features[test] @ (solution / scale) / times_s[test] - 1.0)
    return (solution / scale).tolist(), float(errors.mean())


def _scenario(setup: Setup, seed: int) -> Scenario:
    return Scenario(
        policy="bros",
        be_rate=setup.be_rate,
        ttft_slo_s=ASKED.ttft_slo_s,
        tpot_slo_s=ASKED.tpot_slo_s,
        kv_tokens=setup.kv_tokens,
        host_kv_tokens=setup.kv_tokens,
        max_seqs=MAX_SEQS,
        max_tokens_per_step=setup.max_tokens_per_step,
        warmup_s=setup.warmup_s,
        duration_s=setup.duration_s,
        drain_s=setup.drain_s,
        seed=seed,
    )


if __name__ == "__main__":
    sys.exit(main())
