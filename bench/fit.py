"""Fit a step model to the real engine on this machine, and say how wrong the simulator is with it.

    python -m bench.fit steps --out bench/results/step_model_cpu.json
    python -m bench.fit error --steps bench/results/step_model_cpu.json --out bench/results/simulator_error.json

`steps` runs the configured engine in this process under a mixed load, records what each step computed and how long it
took, and fits the roofline of `bench.step_models` to 70 % of the steps, and the linear coefficients that the
scheduler's own latency model takes (`scheduler.latency_coefficients`). `error` measures RT under BE load on a live
server, simulates the same arrivals with the fitted model, and compares.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from backend.config import parse_config
from backend.engine import Engine, Submit
from backend.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.runtime import load_runtime, make_tokenizer
from bench.fit_step_models import fit, predict
from bench.provenance import provenance
from bench.scenario import Scenario
from bench.serve import ASKED, Setup, measure_policy
from bench.simulate import Replay, Simulation
from bench.step_models import Coefficients, Pair, StepWork
from bench.workload import CHAT_SMALL, PAPER_BE, Arrival, closed_loop, open_loop, poisson_arrivals

HELD_OUT = 0.3
_KV_TOKENS, _MAX_TOKENS_PER_STEP, _MAX_SEQS = 12_288, 512, 64
# Moderate: the machine is busy, but not so full that the queue, and not the steps, decides the latency.
LOADS = (Setup("rt_0.4_be_0.2", rt_rate=0.4, be_rate=0.2), Setup("rt_0.8_be_0.4", rt_rate=0.8, be_rate=0.4))


def record_steps(duration_s: float, seed: int) -> tuple[list[StepWork], NDArray[np.float64]]:
    """Run the real engine under RT and BE load for `duration_s`; return what its steps computed and took, in ms."""
    works: list[StepWork] = []
    times_ms: list[float] = []

    def record(_plan: StepPlan, batch: StepBatch, result: StepResult, _output: StepOutput) -> None:
        counts = batch.num_new_tokens
        starts = [sequence.num_computed - n for sequence, n in zip(batch.sequences, counts, strict=True)]
        works.append(StepWork.of_sequences(starts, counts, len(batch.copies_out) + len(batch.copies_in)))
        times_ms.append(1e3 * result.duration_s)

    scheduler = {"policy": "bros", "max_tokens_per_step": _MAX_TOKENS_PER_STEP, "max_seqs_per_step": _MAX_SEQS}
    config = parse_config({"executor": "torch", "torch": {"num_kv_tokens": _KV_TOKENS}, "scheduler": scheduler})
    engine = load_runtime(config, make_tokenizer(config), lambda _: None, record, lambda _what, _part: None).engine
    assert isinstance(engine, Engine)
    rng = np.random.default_rng(seed)
    rt = open_loop(poisson_arrivals(1.0, duration_s, rng), CHAT_SMALL, rng)
    be = closed_loop(40, PAPER_BE, rng)
    due = sorted([(a, True) for a in rt] + [(a, False) for a in be], key=lambda entry: entry[0].arrival_s, reverse=True)
    engine.post(Submit(_request(Arrival(0.0, 600, 8), False, "warm-up", rng)))
    while engine.step():  # kernels compile and pages come in before anything is recorded
        pass
    works.clear()
    times_ms.clear()
    start_s = time.monotonic()
    while time.monotonic() - start_s < duration_s:
        while due and due[-1][0].arrival_s <= time.monotonic() - start_s:
            arrival, is_rt = due.pop()
            engine.post(Submit(_request(arrival, is_rt, f"fit-{len(due)}", rng)))
        if not engine.step():
            time.sleep(0.005)
    engine.executor.close()
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
        document = fit_steps(*record_steps(arguments.duration_s, arguments.seed), seed=arguments.seed)
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
        max_seqs=_MAX_SEQS,
        max_tokens_per_step=setup.max_tokens_per_step,
        warmup_s=setup.warmup_s,
        duration_s=setup.duration_s,
        drain_s=setup.drain_s,
        seed=seed,
    )


def _request(arrival: Arrival, is_rt: bool, name: str, rng: np.random.Generator) -> Request:
    return Request(
        request_id=RequestId(name),
        priority_class=PriorityClass.REAL_TIME if is_rt else PriorityClass.BEST_EFFORT,
        prompt_token_ids=tuple(rng.integers(1_000, 40_000, arrival.num_prompt).tolist()),
        sampling=SamplingParams(max_tokens=arrival.num_output, ignore_eos=True),
        arrival_s=time.monotonic(),
        slo=Slo(ASKED.ttft_slo_s, ASKED.tpot_slo_s) if is_rt else None,
    )


if __name__ == "__main__":
    sys.exit(main())
