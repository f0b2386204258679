"""Scheduling policies: pure decisions about one step. The published algorithm lives here; so do the baselines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from backend.policy.bros import Bros
from backend.policy.bros_paper import BrosPaper
from backend.policy.plain import PlainPolicy
from backend.policy.priority_tuned import plan_priority_tuned
from backend.policy.round_robin import RoundRobin
from backend.policy.running_first import plan_fcfs, plan_priority
from backend.policy.settings import SchedulerSettings
from backend.policy.tgi import Tgi
from backend.policy.view import Policy, StepLimits

MakePolicy = Callable[[SchedulerSettings, StepLimits], Policy]

POLICIES: dict[str, MakePolicy] = {
    "bros": Bros,
    "fcfs": partial(PlainPolicy, plan_fcfs),
    "priority": partial(PlainPolicy, plan_priority),
    "priority_tuned": partial(PlainPolicy, plan_priority_tuned),
    "tgi": Tgi,
    "round_robin": RoundRobin,
    "bros_paper": BrosPaper,
}
