"""The feasible region: the tightest SLOs that each policy keeps at each real-time load beside best-effort work.

A policy that looks at SLOs is asked for each one on a ladder, by bisection. Of the others one run tells what they keep.
`bros-plan --region` is the command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.common.score import RequestRecord
from bench.sim.scenario import Scenario
from bench.sim.step_models import Pair
from bench.simulate import Simulation
from bench.study import SLO_BLIND

POLICIES = ("bros", "priority_tuned", "priority", "fcfs")
TTFT_LADDER_S = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.6, 3.2)
TPOT_LADDER_S = (0.012, 0.017, 0.025, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.4)
Run = Callable[[Scenario], Sequence[RequestRecord]]


def region(scenario: Scenario, pair: Pair, rates: Sequence[float], goal: float) -> dict[str, Any]:
    """Return the tightest TTFT SLO beside the TPOT SLO of `scenario`, and the reverse, for each policy and rate.

    rates: real-time requests per second. goal: share of them that must keep both. None: not even the loosest is kept.
    """

    def run(one: Scenario) -> list[RequestRecord]:
        simulation = Simulation(one, pair=pair)
        simulation.run()
        print(f"{one.policy}, {one.rt_rate:g}/s, {one.ttft_slo_s:g} s, {one.tpot_slo_s:g} s", file=sys.stderr)
        return [record for record in simulation.rt_records() if record.arrival_s in one.window]

    points = [
        _point(replace(scenario, policy=policy, rt_rate=rate), run, goal) for rate in rates for policy in POLICIES
    ]
    return {
        "scenario": scenario.to_json(),
        "goal": goal,
        "loosest_ttft_slo_s": TTFT_LADDER_S[-1],
        "loosest_tpot_slo_s": TPOT_LADDER_S[-1],
        "points": points,
    }


def _point(scenario: Scenario, run: Run, goal: float) -> dict[str, Any]:
    find = _of_one_run if scenario.policy in SLO_BLIND else _by_bisection
    ttft_s, tpot_s = find(scenario, run, goal)
    return {"policy": scenario.policy, "rt_rate": scenario.rt_rate, "ttft_slo_s": ttft_s, "tpot_slo_s": tpot_s}


def _of_one_run(scenario: Scenario, run: Run, goal: float) -> tuple[float | None, float | None]:
    records, slos = run(scenario), scenario.slos
    ttft_s = [r.ttft_s if r.ttft_s is not None and r.meets_tpot(slos) else np.inf for r in records]
    tpot_s = [r.tpot_s if r.tpot_s is not None and r.meets_ttft(slos) else np.inf for r in records]
    return kept(ttft_s, TTFT_LADDER_S, goal), kept(tpot_s, TPOT_LADDER_S, goal)


def kept(values_s: Sequence[float], ladder_s: Sequence[float], goal: float) -> float | None:
    """Return the first of `ladder_s` that at least `goal` of the values keep; None if none."""
    shares = ((slo_s, np.mean(np.asarray(values_s) <= slo_s)) for slo_s in ladder_s)
    return next((slo_s for slo_s, share in shares if share >= goal), None)


def _by_bisection(scenario: Scenario, run: Run, goal: float) -> tuple[float | None, float | None]:
    def keeps(ttft_slo_s: float = scenario.ttft_slo_s, tpot_slo_s: float = scenario.tpot_slo_s) -> bool:
        one = replace(scenario, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s)
        return bool(np.mean([record.meets_both(one.slos) for record in run(one)]) >= goal)

    return (
        first_kept(TTFT_LADDER_S, lambda slo_s: keeps(ttft_slo_s=slo_s)),
        first_kept(TPOT_LADDER_S, lambda slo_s: keeps(tpot_slo_s=slo_s)),
    )


def first_kept(ladder_s: Sequence[float], is_kept: Callable[[float], bool]) -> float | None:
    """Return the first of `ladder_s` that is kept, if all after it are too; None if not even the last is kept."""
    low, high = 0, len(ladder_s)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_kept(ladder_s[middle]) else (middle + 1, high)
    return ladder_s[low] if low < len(ladder_s) else None
