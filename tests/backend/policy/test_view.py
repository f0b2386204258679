"""The statistics learned from traffic: output ratios and the step time."""

from __future__ import annotations

import pytest

from backend.core.request import Request
from backend.policy.view import Traffic
from tests.backend.factories import be, ended, rt


def end(traffic: Traffic, request: Request, num_output: int, *, has_failed: bool = False) -> None:
    """Let a request that came end after `num_output` tokens."""
    if request.is_rt:
        traffic.rt_arrivals.note(request)
    traffic.note_end(ended(request, num_output), has_failed=has_failed)


def test_output_ratios_are_learned_by_class() -> None:
    traffic = Traffic()
    for _ in range(200):
        end(traffic, rt(10, 10), 5)
        end(traffic, be(10, 10), 2)
    assert traffic.rt_output_ratio == pytest.approx(0.5, abs=0.02)
    assert traffic.be_output_ratio == pytest.approx(0.2, abs=0.02)


def test_requests_that_failed_or_put_nothing_out_say_nothing_about_lengths() -> None:
    traffic = Traffic()
    end(traffic, rt(10, 10), 5, has_failed=True)
    end(traffic, rt(10, 10), 0)
    assert traffic.rt_output_ratio == Traffic().rt_output_ratio
    assert not traffic.rt_lengths.counts.any()


def test_the_lengths_of_real_time_outputs_are_kept() -> None:
    traffic = Traffic()
    end(traffic, be(10, 10), 1)
    assert not traffic.rt_lengths.counts.any()
    end(traffic, rt(10, 10), 9)
    assert traffic.rt_lengths.counts[0] == 1


def test_the_step_time_is_a_moving_average() -> None:
    traffic = Traffic()
    for _ in range(1000):
        traffic.note_step(0.05)
    assert traffic.step_s == pytest.approx(0.05, rel=0.01)
