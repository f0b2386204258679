"""The statistics learned from traffic: output ratios and the most KV slots that real-time held."""

from __future__ import annotations

import pytest

from backend.core.request import Request
from backend.policy.view import Traffic
from tests.backend.factories import be, rt


def ended(request: Request, num_output: int) -> Request:
    request.token_ids.extend([7] * num_output)
    return request


def test_output_ratios_are_learned_by_class() -> None:
    traffic = Traffic()
    for _ in range(200):
        traffic.note_end(ended(rt(10, 10), 5))
        traffic.note_end(ended(be(10, 10), 2))
    assert traffic.rt_output_ratio == pytest.approx(0.5, abs=0.02)
    assert traffic.be_output_ratio == pytest.approx(0.2, abs=0.02)


def test_the_most_that_real_time_held_fades_within_a_minute() -> None:
    traffic = Traffic()
    traffic.note_step(0.02, 1000)
    assert traffic.rt_slots == 1000.0
    for _ in range(60):
        traffic.note_step(1.0, 10)
    assert 10.0 <= traffic.rt_slots < 60.0


def test_the_step_time_is_a_moving_average() -> None:
    traffic = Traffic()
    for _ in range(100):
        traffic.note_step(0.05, 0)
    assert traffic.step_s == pytest.approx(0.05, rel=0.01)
