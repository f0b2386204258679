"""Switch off one mechanism of the `bros` policy at a time, and see in which traffic it pays.

    python -m bench.ablate_policy --out bench/results/policy-ablations.json

Each mechanism is replaced from outside, in the process of this command only: the policy has no switches. A result file
is completed: runs of the same simulation code are not repeated, so the command may be stopped. Runs of other code stay,
and are compared with those of their own commit. `python -m bench.report` writes the table into docs/algorithm.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from backend.core.numbers import whole
from backend.core.request import Request
from backend.policy import packing
from backend.policy.bros import best_effort, budgets, decode_bounds, kv_forecast, pausing, policy, real_time
from backend.policy.bros.budgets import Sustainable
from backend.policy.state import latency_model, objectives
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView
from bench.common.command import as_command, read_part
from bench.common.provenance import provenance
from bench.common.score import score_be, score_rt
from bench.sim.scenario import Scenario
from bench.sim.step_models import Coefficients, load_pairs
from bench.simulate import Simulation
from bench.study import RESULTS, simulation_code

_OUT = "policy-ablations.json"
_BASE = Scenario(be_outstanding=256, warmup_s=40.0, duration_s=100.0, drain_s=200.0)
_FULL_70B = replace(_BASE, pair="llama70b-a100-tp8", rt_rate=10.0)
_TIGHT_70B = replace(_FULL_70B, rt_rate=7.5, ttft_slo_s=0.2, tpot_slo_s=0.05)
_NOISY_CPU = "small CPU engine, noise of 30 %"
_DEAR_PREFILLS = "first prefill of a step: 10 ms"
CELLS: dict[str, Scenario] = {
    "KV-bound, 0.75": replace(_BASE, pair="opt13b-a100-tp2", rt_rate=5.25),
    "KV-bound, 1": replace(_BASE, pair="opt13b-a100-tp2", rt_rate=7.0),
    "grouped-query, 0.75": replace(_BASE, rt_rate=10.5),
    "grouped-query, 1.5": replace(_BASE, rt_rate=21.0),
    "70B, 1": _FULL_70B,
    "70B, 1, pool of 80k": replace(_FULL_70B, kv_tokens=80_000),
    "70B, 0.5, tight": replace(_FULL_70B, rt_rate=5.0, ttft_slo_s=0.2, tpot_slo_s=0.05),
    "70B, 0.75, tight": _TIGHT_70B,
    "Azure, 70B": replace(_BASE, pair="llama70b-h100-tp4", rt_trace="trace_azure_conv.csv", duration_s=260.0),
    "pool of 10k": replace(_BASE, rt_rate=2.0, kv_tokens=10_000),
    "bursty, cv 4": replace(_BASE, rt_rate=8.0, rt_cv=4.0),
    "bursty, cv 8": replace(_BASE, rt_rate=8.0, rt_cv=8.0),
    "heavy tail": replace(_BASE, rt_rate=6.0, rt_lengths="heavy_tail", tpot_slo_s=0.1),
    "tight SLOs": replace(_BASE, rt_rate=10.5, ttft_slo_s=0.2, tpot_slo_s=0.05),
    "1.5x slower": replace(_BASE, rt_rate=8.0, ttft_slo_s=0.2, tpot_slo_s=0.05, slowdown=1.5),
    "stalls of 0.3 s": replace(_BASE, rt_rate=8.0, ttft_slo_s=1.0, tpot_slo_s=0.05, stall_s=0.3),
    "KV-bound, 1.25": replace(_BASE, pair="opt13b-a100-tp2", rt_rate=8.75),
    "KV-bound, 1.5, tight": replace(
        _BASE, pair="opt13b-a100-tp2", rt_rate=10.5, ttft_slo_s=0.2, tpot_slo_s=0.05, warmup_s=80.0, duration_s=160.0
    ),
    "grouped-query, 1.5, longer": replace(_BASE, rt_rate=21.0, warmup_s=80.0, duration_s=160.0),
    "KV-bound, on and off": replace(_BASE, pair="opt13b-a100-tp2", rt_rate=1.5, rt_burst=10.0),
    "pool of 20k, blocks of 128": replace(
        _BASE, rt_rate=3.0, rt_cv=4.0, ttft_slo_s=1.0, kv_tokens=20_000, block_size=128
    ),
    "1 in 20 asks TPOT 11 ms": replace(_BASE, rt_rate=8.0, other_slo_share=0.05, other_tpot_slo_s=0.011),
    "70B, 1 in 20 asks TTFT 60 ms": replace(
        _BASE, pair="llama70b-h100-tp4", rt_rate=12.0, other_slo_share=0.05, other_ttft_slo_s=0.06
    ),
    "1 in 10 asks TTFT 10 s, 8,000 tokens": replace(
        _BASE,
        rt_rate=6.0,
        ttft_slo_s=0.2,
        tpot_slo_s=0.05,
        other_slo_share=0.1,
        other_ttft_slo_s=10.0,
        other_tpot_slo_s=0.05,
        other_prompt_tokens=8_000,
    ),
    "70B, 0.75, tight, ends unknown": replace(_TIGHT_70B, rt_max_tokens=1_024),
    "70B, 0.75, tight, half end early": replace(
        _TIGHT_70B,
        rt_max_tokens=1_024,
        other_slo_share=0.5,
        other_ttft_slo_s=0.2,
        other_tpot_slo_s=0.05,
        other_output_tokens=8,
    ),
    "1,000 at once": Scenario(
        pair="opt13b-a100-tp2",
        rt_trace="trace_flood.csv",
        be_outstanding=64,
        ttft_slo_s=5.0,
        warmup_s=0.0,
        duration_s=100.0,
        drain_s=200.0,
    ),
    "rare and tight": replace(_BASE, rt_rate=0.1, ttft_slo_s=0.03, duration_s=300.0),
    "noise of 20 %": replace(_BASE, rt_rate=8.0, ttft_slo_s=0.2, tpot_slo_s=0.05, step_noise=0.2),
    _DEAR_PREFILLS: replace(_BASE, rt_rate=10.5, tpot_slo_s=0.05),
    _NOISY_CPU: Scenario(  # SmolLM2-135M in vLLM on two cores, about
        rt_rate=0.6,
        rt_lengths="chat_small",
        be_backlog=150,
        ttft_slo_s=0.6,
        tpot_slo_s=0.06,
        kv_tokens=12_288,
        host_kv_tokens=0,
        block_size=128,
        max_seqs=128,
        max_tokens_per_step=512,
        step_noise=0.3,
        warmup_s=0.0,
        duration_s=200.0,
        drain_s=15.0,
    ),
}
_PAIR = load_pairs()[_BASE.pair]
PAIRS = {
    _DEAR_PREFILLS: replace(_PAIR, coefficients=replace(_PAIR.coefficients, any_prefill_ms=10.0)),
    _NOISY_CPU: replace(_PAIR, coefficients=Coefficients(22.0, 0.6, 0.6, 0.002, 0.0001, 0.5, 10.0, 24.0, 0.05)),
}
Switch = Callable[[], AbstractContextManager[Any]]
_FOREVER = float("inf")


def setting(**values: Any) -> Switch:
    """Return a switch that changes settings of the scheduler."""

    @contextmanager
    def change() -> Iterator[None]:
        def settings(scenario: Scenario) -> Mapping[str, Any]:
            return {**scenario.settings, **values}

        with patch(f"{__name__}._settings", settings):
            yield

    return change


def constant(owner: Any, **values: Any) -> Switch:
    """Return a switch that changes attributes of a module or class."""
    return lambda: patch.multiple(owner, **values)


def both(*switches: Switch) -> Switch:
    """Return a switch that turns all of `switches`."""

    @contextmanager
    def change() -> Iterator[None]:
        with ExitStack() as stack:
            for switch in switches:
                stack.enter_context(switch())
            yield

    return change


_has_room_for, _sustainable_s = kv_forecast.KVForecast.has_room_for, budgets.Budgets.sustainable_s
_cap_s = budgets.responsiveness_cap_s
_decode_bounds: Any = decode_bounds.decode_bounds
_pack_decodes = best_effort.BestEffortFill._pack_decodes


def _cap_without_overshoot(view: SchedulerView, now_s: float) -> float:
    return _cap_s(view, now_s) * (1.0 + view.latency.overshoot_ratio)


def _by_kv_slots_only(step: budgets.Budgets, predicted_s: float) -> Sustainable:
    return _sustainable_s(step, predicted_s)._replace(by_batch_slots=_FOREVER)


def _by_batch_slots_only(step: budgets.Budgets, predicted_s: float) -> Sustainable:
    return _sustainable_s(step, predicted_s)._replace(by_kv_slots=_FOREVER)


def _rt_always_fits(forecast: kv_forecast.KVForecast, request: Request, *without: Any, **rows: Any) -> bool:
    return forecast._is_rt or _has_room_for(forecast, request, *without, **rows)


def _be_always_fits(forecast: kv_forecast.KVForecast, request: Request, *without: Any, **rows: Any) -> bool:
    return not forecast._is_rt or _has_room_for(forecast, request, *without, **rows)


def _without_catch_up(*arguments: Any) -> Any:
    return _decode_bounds(*arguments[:-1], _FOREVER)


def _without_odd_ones(*arguments: Any) -> Any:
    *others, _, ratios, num_ratios, catch_up = arguments
    return _decode_bounds(*others, 0.0, ratios, num_ratios, catch_up)


def _without_loans(*arguments: Any) -> Any:
    *others, num_ratios, catch_up = arguments
    return _decode_bounds(*others, np.zeros_like(num_ratios), catch_up)


def _with_usual_ends(*arguments: Any) -> Any:
    *others, ratios, num_ratios, catch_up = arguments
    sums = np.where(np.isfinite(ratios), ratios, 0.0).sum(axis=1, keepdims=True)
    usual = np.repeat(sums / np.maximum(1, num_ratios)[:, None], ratios.shape[1], axis=1)
    return _decode_bounds(*others, usual, num_ratios, catch_up)


def _pack_all_decodes(fill: best_effort.BestEffortFill, rows: Rows, *_: int) -> Rows:
    return _pack_decodes(fill, rows)


NOTHING = "nothing"
MECHANISMS: dict[str, Switch] = {
    NOTHING: both(),
    "late ones behind": both(
        constant(policy.Bros, is_late=lambda *_: False), constant(real_time.RealTimeFill, _is_late=lambda *_: False)
    ),
    "spare share": constant(budgets, SPARE_USE=1.0),
    "overshoot margin": constant(latency_model.LatencyModel, _track_error=lambda *_: None),
    "overshoot in the cap": constant(budgets, responsiveness_cap_s=_cap_without_overshoot),
    "catch-up": constant(budgets, decode_bounds=_without_catch_up),
    "Little's law, KV slots": constant(budgets.Budgets, sustainable_s=_by_batch_slots_only),
    "Little's law, batch slots": constant(budgets.Budgets, sustainable_s=_by_kv_slots_only),
    "unused ends of blocks": both(
        constant(kv_forecast, unused_of_block=lambda _: 0.0), constant(budgets, unused_of_block=lambda _: 0.0)
    ),
    "about equal deadlines": constant(real_time, _SPAN_S=1e-9),
    "deferrable decodes": constant(real_time, _DEFERRABLE_STEPS=_FOREVER, SPARE_USE=0.0),
    "deposit": constant(policy, _DEPOSIT_S=0.0),
    "lending": constant(budgets, decode_bounds=_without_loans),
    "loans by the outputs that end early": constant(budgets, decode_bounds=_with_usual_ends),
    "no loans for prompts that can wait": constant(budgets.Budgets, prompt_s=lambda step, _: step.in_time_s),
    "lead": constant(budgets.Budgets, _lead_s=lambda *_: _FOREVER),
    "pausing": constant(pausing.Pausing, make_room_for=lambda *_: False),
    "RT KV forecast": constant(kv_forecast.KVForecast, has_room_for=_rt_always_fits),
    "BE KV forecast": constant(kv_forecast.KVForecast, has_room_for=_be_always_fits),
    "early return of paused ones": constant(real_time.RealTimeFill, _resume=lambda *_: None),
    "later RT gives way": constant(packing.Packing, make_room_whole=lambda *_: False),
    "one in a few asks for a fast pace": constant(budgets, decode_bounds=_without_odd_ones),
    "decodes take half of a step": constant(budgets, _DECODE_SHARE=1.0),
    "steps of an idle machine": constant(budgets, _IDLE_STEPS=0.0),
    "usual TTFT SLO": constant(objectives, _WEIGHT=0.0),
    "a prompt in front": constant(objectives, _IN_A_ROW=1.0),
    "batch slot for a BE prompt": constant(best_effort.BestEffortFill, _pack_decodes=_pack_all_decodes),
    "prefill pacing": constant(budgets.Budgets, prefill_end_s=lambda *_: _FOREVER),
    "dear prefills": constant(best_effort, _WORTH=0.0),
    "be_min_share": setting(be_min_share=0.0),
}


def _settings(scenario: Scenario) -> Mapping[str, Any]:
    return scenario.settings


def run(mechanism: str, cell: str, seed: int) -> dict[str, Any]:
    """Simulate one cell without one mechanism; return its scores."""
    with MECHANISMS[mechanism]():
        scenario = replace(CELLS[cell], seed=seed)
        simulation = Simulation(replace(scenario, settings=_settings(scenario)), pair=PAIRS.get(cell))
        simulation.run()
    records, window = simulation.records.values(), scenario.window
    rt, be = score_rt(records, scenario.slos, window), score_be(records, window)
    return {
        "mechanism": mechanism,
        "cell": cell,
        "seed": seed,
        "commit": provenance()["commit"],
        "code": simulation_code("bros"),
        "num_rt": rt["num_rt"],
        "rt_attainment": rt["rt_attainment"]["both"],
        "be_tokens_per_s": be["be_tokens_per_s"],
    }


def complete(out: Path, mechanisms: Sequence[str], cells: Sequence[str], seeds: Sequence[int]) -> None:
    """Run what `out` lacks or has of other code, and write it after each run. Raises UsageError."""
    code = simulation_code("bros")
    runs = read_part("--out", out, "runs") if out.exists() else []
    cells_then = read_part("--out", out, "cells") if out.exists() else {}
    done = {_key(entry) for entry in runs if entry.get("code") == code}  # the first published runs have none
    gc.disable()
    for seed in seeds:
        for mechanism in mechanisms:
            for cell in cells:
                key = (mechanism, cell, seed)
                if key not in done:
                    entry = run(*key)
                    gc.collect()
                    runs = [*runs, entry]  # one of other code stays: those of its commit are compared with it
                    _write(out, cells_then, runs)
                    print(*key, entry["rt_attainment"], entry["be_tokens_per_s"], file=sys.stderr)


def _key(entry: Mapping[str, Any]) -> tuple[str, str, int]:
    return entry["mechanism"], entry["cell"], entry["seed"]


def _write(out: Path, cells_then: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    cells = {**cells_then, **{name: scenario.to_json() for name, scenario in CELLS.items()}}
    lines = ",\n".join(json.dumps(entry) for entry in runs)
    head = f'"provenance": {json.dumps(provenance())},\n"cells": {json.dumps(cells)}'
    out.write_text(f'{{{head},\n"runs": [\n{lines}\n]}}\n')


@as_command
def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablate_policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n  ".join(["mechanisms:", *MECHANISMS]) + "\n\n" + "\n  ".join(["cells:", *CELLS]),
    )
    parser.add_argument("--out", type=Path, default=RESULTS / _OUT, help=f"default: bench/results/{_OUT}")
    parser.add_argument("--seeds", type=whole(), default=2, help="seeds of each run (default: %(default)s)")
    for name, choices in (("mechanism", MECHANISMS), ("cell", CELLS)):
        parser.add_argument(
            f"--{name}",
            action="append",
            choices=choices,
            metavar="NAME",
            help=f"only this {name} of those below; may be given again (default: all)",
        )
    arguments = parser.parse_args()
    complete(
        arguments.out,
        arguments.mechanism or list(MECHANISMS),
        arguments.cell or list(CELLS),
        range(arguments.seeds),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
