"""What `bros top` costs: told from made-up windows, and from the kernel's counts."""

from __future__ import annotations

import os
import time

import pytest

from bench.watch import Window, cpu_s, score


def test_the_cost_is_that_of_a_step_and_not_of_a_window() -> None:
    """The watched windows here hold more steps, and so more processor time, at one per cent more a step."""
    pairs = [{"watched": Window(200, 2.02), "alone": Window(100, 1.0)}] * 3
    result = score(pairs, window_s=2.0)
    assert result["added_cpu_per_step_ratio"]["estimate"] == pytest.approx(0.01)
    assert result["added_share_of_time_ratio"]["estimate"] == pytest.approx(0.0001 * 100 / 2.0)
    assert result["steps_ratio"]["estimate"] == pytest.approx(2.0)


def test_processor_time_is_that_of_the_process() -> None:
    kernel_s, own_s = cpu_s(os.getpid()), time.process_time()
    while time.process_time() < own_s + 0.05:
        pass
    assert cpu_s(os.getpid()) - kernel_s == pytest.approx(time.process_time() - own_s, abs=0.02)
