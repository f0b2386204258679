"""Settings of the scheduler are checked once, by name, value and limit."""

from __future__ import annotations

import re

import pytest

from backend.core.errors import ConfigError
from backend.policy.settings import POLICY_NAMES, SchedulerSettings


def test_the_defaults_are_valid() -> None:
    assert SchedulerSettings().policy in POLICY_NAMES


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("policy", "edf", "policy: 'edf' is not one of bros, "),
        ("max_waiting_rt", 0, "max_waiting_rt: 0 is below 1"),
        ("max_tokens_per_step", 0, "max_tokens_per_step: 0 is below 1"),
        ("be_min_share", 1.0, "be_min_share: 1.0 is outside [0, 1)"),
        ("budget_margin", -0.1, "budget_margin: -0.1 is outside [0, 1)"),
        ("latency_forgetting", 0.4, "latency_forgetting: 0.4 is outside [0.5, 1]"),
        ("responsiveness_cap_s", 0.0, "responsiveness_cap_s: 0.0 is not above 0"),
        ("waiting_served_ratio", 0.0, "waiting_served_ratio: 0.0 is not above 0"),
        ("latency_coefficients", (1.0, -1.0, 0.0, 0.0, 0.0, 0.0), "has a negative value"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SchedulerSettings(**{name: value})  # type: ignore[arg-type]  # parametrized
