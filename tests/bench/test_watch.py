"""What `bros top` costs: told from made-up windows, and from the kernel's counts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from bench.watch import Window, cpu_s, score
from client.commands.top import INTERVAL_S


def test_the_cost_is_that_of_a_look_and_not_of_more_steps() -> None:
    """The watched windows here hold twice the steps, and so more processor time; 10 looks add 20 ms to it."""
    pairs = [{"watched": Window(200, 2.02, 10), "alone": Window(100, 1.0, 0)}] * 3
    result = score(pairs)
    assert result["cpu_ms_per_look"]["estimate"] == pytest.approx(2.0)
    assert result["cost_ratio"]["estimate"] == pytest.approx(0.002 / INTERVAL_S)
    assert result["steps_ratio"]["estimate"] == pytest.approx(2.0)


def test_processor_time_is_that_of_the_process() -> None:
    kernel_s, own_s = cpu_s(os.getpid()), time.process_time()
    while time.process_time() < own_s + 0.05:
        pass
    assert cpu_s(os.getpid()) - kernel_s == pytest.approx(time.process_time() - own_s, abs=0.02)


def test_the_recorded_cost_is_what_the_documents_say() -> None:
    recorded = json.loads((Path(__file__).parents[2] / "bench" / "results" / "watch.json").read_text())
    assert recorded["cost_ratio"]["high"] < 0.01
