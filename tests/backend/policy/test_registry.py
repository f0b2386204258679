"""Every policy name makes a policy that plans."""

from __future__ import annotations

import pytest

from backend.policy.registry import POLICIES
from backend.policy.settings import POLICY_NAMES
from tests.backend.factories import be, make_scheduler_for_test, rt


def test_every_name_of_the_settings_is_registered() -> None:
    assert set(POLICIES) == set(POLICY_NAMES)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_plans_a_step(name: str) -> None:
    scheduler = make_scheduler_for_test(policy=name)
    requests = {rt(), be()}
    for request in requests:
        scheduler.add(request, 0.0)
    taken = scheduler.plan(0.0).num_new_tokens
    assert taken
    assert set(taken) <= requests
