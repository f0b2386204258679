"""Fit a step model to the real engine on this machine, and say how wrong the simulator is with it.

    python -m tools.fit steps --out bench/results/step_model_cpu.json
    python -m tools.fit error --out bench/results/simulator_error.json

Both put load on a live server that records the work and the duration of each step of its engine.

`steps` fits two forms to 70 % of the steps: the table of `bench.sim.step_table`, and the linear coefficients of the
scheduler's own latency model (`scheduler.latency_coefficients`).

`error` measures RT under BE load. It makes one run per load and seed, and interleaves the loads. It then simulates each
run's arrivals with a model fitted to the *other* runs. The model has their steps, and the part of the time to first
token that passes outside the engine. So no model is fitted to the run that it is compared with. The other runs lie
before and after it, because the speed of a shared machine changes from minute to minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from backend.core.numbers import positive, whole
from bench.common.command import as_command
from bench.common.provenance import provenance
from bench.common.score import RequestRecord
from bench.live.load import BrosTarget, LoadError
from bench.serve import ASKED, MAX_SEQS, Setup, measure_policy
from bench.sim.scenario import Scenario
from bench.sim.step_models import StepWork
from bench.sim.step_table import TabledPair, fit_table
from bench.simulate import Replay, Simulation
from tools.fit_step_models import fit, predict

HELD_OUT = 0.3
_WARM_UP_S = 2.0  # kernels compile, and the system maps pages
_BETWEEN_S = 0.01  # the engine was idle if more time passed between two steps
_STEPS = Setup("fit", rt_rate=1.0, be_backlog=25, drain_s=5.0)  # a BE backlog, then RT alone
# Moderate: the machine is busy, but not so full that the queue, and not the steps, decides the latency.
LOADS = (Setup("rt_0.4_be_0.2", rt_rate=0.4, be_rate=0.2), Setup("rt_0.8_be_0.4", rt_rate=0.8, be_rate=0.4))
_STATISTICS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda values: np.mean(values, axis=-1),
    "p50": lambda values: np.percentile(values, 50, axis=-1),
    "p90": lambda values: np.percentile(values, 90, axis=-1),
}
_NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Recording:
    """A live run. `times_ms[i]` is the time of the step that computed `work[i]`.

    delivery_s: time to first token at the client less that in the engine, mean over real-time requests.
    """

    setup: Setup
    seed: int
    foreign_cores: float
    records: list[RequestRecord]
    works: list[StepWork]
    times_ms: NDArray[np.float64]
    delivery_s: float


def record(setup: Setup, seed: int) -> Recording:
    """Start a server that records its steps, put load on it, and stop it."""
    targets: list[BrosTarget] = []

    def connect(url: str) -> BrosTarget:
        targets.append(BrosTarget(url))
        return targets[-1]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.jsonl"
        result, records = measure_policy("bros", setup, seed, [f"service.step_file={path}"], connect)
        works, times_ms = read_steps(path.read_text())
    server_ttft_s = targets[-1].server_ttft_s
    answered = [r for r in records if r.is_rt and r.request_id in server_ttft_s]
    delivery_s = [r.ttft_s - server_ttft_s[r.request_id] for r in answered if r.ttft_s is not None]
    return Recording(setup, seed, result["foreign_cores"], records, works, times_ms, float(np.mean(delivery_s)))


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
    """Fit both forms to a random 70 % of the steps. Return them with their errors on the other steps."""
    order = np.random.default_rng(seed).permutation(len(works))
    num_fitted = int(len(works) * (1 - HELD_OUT))
    train, test = order[:num_fitted], order[num_fitted:]
    table = fit_table([works[i] for i in train], times_ms[train])
    linear, linear_error = _fit_linear(works, times_ms, train, test)
    return {
        "num_steps": len(works),
        "table": asdict(table),
        "heldout_error": step_error(table.times_ms([works[i] for i in test]), times_ms[test]),
        "latency_coefficients": linear,
        "linear_heldout_error": linear_error,
    }


def step_error(fitted_ms: NDArray[np.float64], times_ms: NDArray[np.float64]) -> dict[str, float]:
    """Return the absolute relative errors of single steps, and the error of their sum, in percent."""
    errors = np.abs(fitted_ms / times_ms - 1.0) * 100
    return {
        "mean_pct": float(errors.mean()),
        "p95_pct": float(np.percentile(errors, 95)),
        "sum_pct": float(fitted_ms.sum() / times_ms.sum() - 1.0) * 100,
    }


def compare(run: Recording, others: Sequence[Recording]) -> tuple[dict[str, Any], list[RequestRecord]]:
    """Simulate the arrivals of `run` with a model fitted to `others`. Return the errors of steps, and the answers."""
    works = [work for other in others for work in other.works]
    times_ms = np.concatenate([other.times_ms for other in others])
    delivery_s = float(np.mean([other.delivery_s for other in others]))
    table, roofline = fit_table(works, times_ms), fit(works, times_ms)
    mix = run.setup.mix(run.seed)
    pair = TabledPair("fitted", "this machine", roofline, run.setup.kv_tokens, 0.0, 0.0, table)
    simulation = Simulation(scenario_of(run.setup, run.seed), Replay(pair, mix.rt, mix.be))
    simulation.run()
    errors = {
        "seed": run.seed,
        "foreign_cores": run.foreign_cores,
        "num_steps": len(run.works),
        "table_error": step_error(table.times_ms(run.works), run.times_ms),
        "roofline_error": step_error(predict(roofline, run.works), run.times_ms),
        "delivery_s": {"measured": run.delivery_s, "simulated": delivery_s},
    }
    return errors, [_delivered(record, delivery_s) for record in simulation.records.values()]


def compare_load(name: str, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Compare the runs of one load with their simulations, over all seeds. Each model is fitted to the other runs."""
    runs, measured, simulated = [], [], []
    for run in recordings:
        if run.setup.name == name:
            errors, records = compare(run, [other for other in recordings if other is not run])
            runs.append(errors)
            measured += _scored(run.records, run.setup)
            simulated += _scored(records, run.setup)
    return {"name": name, "num_rt": len(measured), "runs": runs, "comparisons": _comparisons(measured, simulated)}


def scenario_of(setup: Setup, seed: int) -> Scenario:
    """Return the simulator's scenario for `setup`, without arrivals: those are replayed."""
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


@as_command
def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("steps", "error"))
    parser.add_argument("--duration-s", type=positive, default=65.0, help="of each run's arrivals (default: 65)")
    parser.add_argument(
        "--seeds", nargs="+", type=whole(0), default=[0, 1, 2, 3], help="a run each, and a load (default: 0 1 2 3)"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    loads = LOADS if arguments.what == "error" else (_STEPS,)
    facts = provenance()
    setups = [replace(load, duration_s=arguments.duration_s) for load in loads]
    recordings = [record(setup, seed) for seed in arguments.seeds for setup in setups]
    if arguments.what == "steps":
        works = [work for recording in recordings for work in recording.works]
        times_ms = np.concatenate([recording.times_ms for recording in recordings])
        document = {"provenance": facts, **fit_steps(works, times_ms, seed=arguments.seeds[0])}
    else:
        document = {
            "provenance": facts,
            "seeds": arguments.seeds,
            "loads": [compare_load(load.name, recordings) for load in loads],
        }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document.get("heldout_error") or document["loads"]), file=sys.stderr)
    return 0


def _comparisons(measured: Sequence[RequestRecord], simulated: Sequence[RequestRecord]) -> dict[str, Any]:
    """Compare two sides that have the same requests in the same order. Intervals come from a paired bootstrap."""
    picks = np.random.default_rng(0).integers(len(measured), size=(_NUM_RESAMPLES, len(measured)))
    comparisons = {}
    for what in ("tpot_s", "ttft_s"):
        real, made_up = (np.asarray([getattr(r, what) for r in records]) for records in (measured, simulated))
        for name, statistic in _STATISTICS.items():
            drawn = statistic(made_up[picks]) / statistic(real[picks]) - 1.0
            comparisons[f"{what.removesuffix('_s').upper()} {name}, s"] = {
                "measured": float(statistic(real)),
                "simulated": float(statistic(made_up)),
                "error_ratio": float(statistic(made_up) / statistic(real)) - 1.0,
                "error_interval": np.percentile(drawn, (2.5, 97.5)).tolist(),
            }
    return comparisons


def _scored(records: Sequence[RequestRecord], setup: Setup) -> list[RequestRecord]:
    """Return the real-time requests that arrived in the window. Raises LoadError where one was not answered."""
    scored = [r for r in records if r.is_rt and r.arrival_s in setup.window]
    if unanswered := [r.request_id for r in scored if not r.is_finished]:
        raise LoadError(f"{setup.name}: {unanswered[0]} was not answered, so the load was not moderate")
    return scored


def _delivered(record: RequestRecord, delivery_s: float) -> RequestRecord:
    """Return a simulated request as its client sees it."""
    return replace(record, token_times_s=[time_s + delivery_s for time_s in record.token_times_s])


def _fit_linear(
    works: Sequence[StepWork], times_ms: NDArray[np.float64], train: NDArray[np.int64], test: NDArray[np.int64]
) -> tuple[list[float], float]:
    """The six coefficients of `latency_model` in seconds, and their mean held-out error as a ratio."""
    rows = [(1.0, w.num_new_tokens, w.decode_context, w.prefill_pairs, w.num_copied, w.num_prefills > 0) for w in works]
    features, times_s = np.asarray(rows, np.float64), times_ms * 1e-3
    scale = np.maximum(features[train].max(axis=0), 1.0)
    solution, _ = nnls(features[train] / scale / times_s[train, None], np.ones(len(train)))
    errors = np.abs(features[test] @ (solution / scale) / times_s[test] - 1.0)
    return (solution / scale).tolist(), float(errors.mean())


if __name__ == "__main__":
    sys.exit(main())
