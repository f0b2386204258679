"""The policies by name."""

from __future__ import annotations

from collections.abc import Callable

from backend.policy.bros import Bros
from backend.policy.bros_paper import BrosPaper
from backend.policy.plain import PlainPolicy, PlanFunction
from backend.policy.priority_tuned import plan_priority_tuned
from backend.policy.round_robin import RoundRobin
from backend.policy.running_first import plan_fcfs, plan_priority
from backend.policy.settings import SchedulerSettings
from backend.policy.tgi import Tgi
from backend.policy.view import Policy, StepLimits

MakePolicy = Callable[[SchedulerSettings, StepLimits], Policy]


def _plain(plan: PlanFunction) -> MakePolicy:
    return lambda _settings, limits: PlainPolicy(plan, limits)


def _make_tgi(settings: SchedulerSettings, limits: StepLimits) -> Policy:
    tgi = Tgi(settings)
    return PlainPolicy(tgi.plan, limits, tgi.observe)


def _make_round_robin(_settings: SchedulerSettings, limits: StepLimits) -> Policy:
    round_robin = RoundRobin()
    return PlainPolicy(round_robin.plan, limits, round_robin.observe)


POLICIES: dict[str, MakePolicy] = {
    "bros": Bros,
    "fcfs": _plain(plan_fcfs),
    "priority": _plain(plan_priority),
    "priority_tuned": _plain(plan_priority_tuned),
    "tgi": _make_tgi,
    "round_robin": _make_round_robin,
    "bros_paper": BrosPaper,
}
