"""The baselines, planned in a few array operations, decide as their slow, obvious twins do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from backend.core.plan import StepPlan
from backend.core.request import Request
from backend.policy.registry import POLICIES
from backend.policy.settings import SchedulerSettings
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.waiting_queue import Key
from backend.policy.view import Policy, SchedulerView, StepLimits, StepRecord
from bench.sim.scenario import Scenario
from bench.simulate import Simulation
from tests.backend.policy import twins
from tests.fuzz import FuzzRun

TWINS: dict[str, twins.Twin] = {
    "fcfs": twins.plan_fcfs,
    "priority": twins.plan_priority,
    "priority_tuned": twins.plan_priority_tuned,
    "bros_paper": twins.plan_bros_paper,
}


@dataclass
class Compared:
    """A policy that asserts, in each step, that its twin would have decided the same."""

    policy: Policy
    twin: twins.Twin
    twin_observe: Callable[[StepRecord], None]
    num_reclaims: int = 0

    def order(self, request: Request) -> Key:
        return self.policy.order(request)

    def is_late(self, request: Request, latency: LatencyModel, now_s: float) -> bool:
        return self.policy.is_late(request, latency, now_s)

    def observe(self, step: StepRecord) -> None:
        self.policy.observe(step)
        self.twin_observe(step)

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        plan, twin = self.policy.plan(view, now_s), self.twin(self.policy, view, now_s)
        assert list(plan.num_new_tokens.items()) == list(twin.num_new_tokens.items())
        assert (plan.reclaims, plan.restores, plan.budget_s) == (twin.reclaims, twin.restores, twin.budget_s)
        assert plan.predicted_s == pytest.approx(twin.predicted_s, rel=1e-9)
        self.num_reclaims += len(plan.reclaims)
        return plan


@pytest.mark.parametrize("name", [*TWINS, "round_robin"])
def test_the_fast_policy_plans_what_its_obvious_twin_plans(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _compare_with_twin(name, monkeypatch)
    for seed in range(
        0, 100, 4
    ):  # without a host part for prefixes: `bros_paper` foresees no copies for one that waits
        run = FuzzRun(seed, name)
        assert not run.settings.prefix_host_tokens
        run.run()
    assert sum(compared.num_reclaims for compared in made) > 9, "the runs were too easy to tell anything"


def test_bros_paper_plans_what_its_obvious_twin_plans_under_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _compare_with_twin("bros_paper", monkeypatch)
    overload = Scenario(
        policy="bros_paper",
        rt_rate=200.0,
        be_outstanding=8,
        kv_tokens=8192,
        warmup_s=0.0,
        duration_s=3.0,
        drain_s=0.0,
    )
    simulation = Simulation(overload)
    simulation.run()
    view = simulation.scheduler.view
    assert np.count_nonzero(view.table.is_preempted) + len(view.rt_waiting) > 200, "there was nobody to be left out"
    assert sum(compared.num_reclaims for compared in made) > 99, "the run was too easy to tell anything"


def _compare_with_twin(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Compared]:
    """Let each policy `name` that is made be compared with its twin; return them as they are made."""
    made: list[Compared] = []
    registered = POLICIES[name]

    def make(settings: SchedulerSettings, limits: StepLimits) -> Policy:
        round_robin = twins.RoundRobin()
        twin = TWINS.get(name, round_robin.plan)
        made.append(Compared(registered.make(settings, limits), twin, round_robin.observe))
        return made[-1]

    monkeypatch.setitem(POLICIES, name, replace(registered, make=make))
    return made
