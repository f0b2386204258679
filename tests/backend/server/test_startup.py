"""What an engine says when it is ready is what its executor does and holds."""

from __future__ import annotations

import pytest

from backend.core.clock import VirtualClock
from backend.core.executor import ExecutorCapacity
from backend.core.request import Slo
from backend.executors.sim import SimExecutor, SimSettings
from backend.server.startup import Speed, measure_speed, memory_line, speed_line

SETTINGS = SimSettings(coefficients=(4e-3, 1e-3, 0.0, 0.0, 0.0), verify=True)
OBJECTIVES = Slo(ttft_slo_s=1.0, tpot_slo_s=0.1)


def test_steps_of_one_request_are_measured() -> None:
    speed = measure_speed(SimExecutor(SETTINGS, VirtualClock()))
    assert (speed.decode_s, speed.prefill_s, speed.num_prompt) == pytest.approx((5e-3, 132e-3, 128))


@pytest.mark.parametrize(
    ("limits", "num_prompt"),
    [
        ({"num_blocks": 1, "block_size": 16}, 16),
        ({"max_seq_len": 40}, 40),
        ({"max_tokens_per_step": 64}, 64),
        ({"num_blocks": 1, "block_size": 2}, 2),
    ],
    ids=str,
)
def test_a_small_executor_is_measured_with_a_shorter_prompt(limits: dict[str, int], num_prompt: int) -> None:
    settings = SimSettings(coefficients=SETTINGS.coefficients, verify=True, **limits)  # type: ignore[arg-type]  # sizes
    assert measure_speed(SimExecutor(settings, VirtualClock())).num_prompt == num_prompt


def test_objectives_that_the_machine_meets_are_said_to_be_met() -> None:
    line = speed_line(Speed(decode_s=0.028, prefill_s=0.466, num_prompt=128), OBJECTIVES)
    assert line == (
        "alone, this machine decodes in 28.0 ms and computes a prompt of 128 tokens in 466 ms: the default TPOT "
        "objective of 100 ms is met, the TTFT objective of 1000 ms by prompts of up to about 274 tokens"
    )


def test_an_objective_below_the_machines_own_step_cannot_be_met() -> None:
    line = speed_line(Speed(decode_s=0.12, prefill_s=2.0, num_prompt=128), OBJECTIVES)
    assert "decodes in 120.0 ms" in line
    assert "TPOT objective of 100 ms CANNOT BE MET" in line
    assert "by prompts of up to about 64 tokens" in line


def test_the_planned_memory_is_said_in_one_line() -> None:
    capacity = ExecutorCapacity(16, 100, 50, 2048, 512, 64, weight_bytes=361_400_000, kv_bytes=2_500_000_000)
    assert memory_line(capacity) == (
        "memory: weights 361 MB, KV pool 2,500 MB (1600 tokens), host pool 0 MB (50 tokens)"
    )
