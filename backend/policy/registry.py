"""The policies by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backend.policy.baselines.bros_paper import BrosPaper
from backend.policy.baselines.plain import PlainPolicy, PlanFunction
from backend.policy.baselines.priority_tuned import plan_priority_tuned
from backend.policy.baselines.round_robin import RoundRobin
from backend.policy.baselines.running_first import plan_fcfs, plan_priority
from backend.policy.baselines.tgi import Tgi
from backend.policy.bros.policy import Bros
from backend.policy.settings import SchedulerSettings
from backend.policy.view import Policy, StepLimits

MakePolicy = Callable[[SchedulerSettings, StepLimits], Policy]


@dataclass(frozen=True, slots=True)
class Registered:
    """How a policy is made, and which KV cache it gets.

    has_plain_kv: one owner per block, and preempted KV is computed again, as in the systems the baselines stand for.
    """

    make: MakePolicy
    has_plain_kv: bool = False


def _plain(plan: PlanFunction) -> Registered:
    return Registered(lambda _settings, _limits: PlainPolicy(plan), has_plain_kv=True)


def _make_tgi(settings: SchedulerSettings, _limits: StepLimits) -> Policy:
    tgi = Tgi(settings)
    return PlainPolicy(tgi.plan, tgi.observe)


def _make_round_robin(_settings: SchedulerSettings, _limits: StepLimits) -> Policy:
    round_robin = RoundRobin()
    return PlainPolicy(round_robin.plan, round_robin.observe)


POLICIES: dict[str, Registered] = {
    "bros": Registered(Bros),
    "fcfs": _plain(plan_fcfs),
    "priority": _plain(plan_priority),
    "priority_tuned": _plain(plan_priority_tuned),
    "tgi": Registered(_make_tgi, has_plain_kv=True),
    "round_robin": Registered(_make_round_robin, has_plain_kv=True),
    "bros_paper": Registered(BrosPaper),
}
