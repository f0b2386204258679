"""Scheduling policies: pure decisions about one step. The published algorithm lives here; so do the baselines."""

from __future__ import annotations

from collections.abc import Callable

from backend.policy.bros import Bros
from backend.policy.fcfs import Fcfs
from backend.policy.settings import SchedulerSettings
from backend.policy.view import Policy, StepLimits

MakePolicy = Callable[[SchedulerSettings, StepLimits], Policy]

POLICIES: dict[str, MakePolicy] = {"bros": Bros, "fcfs": Fcfs}
