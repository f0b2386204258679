"""The simulated executor: time, tokens and faults are decided by its settings and the batch, by nothing else."""

from __future__ import annotations

import re

import numpy as np
import pytest

from backend.core.clock import MonotonicClock, VirtualClock
from backend.core.errors import ConfigError, ExecutorError
from backend.core.plan import StepBatch
from backend.core.request import Request
from backend.executors.sim import SimExecutor, SimSettings, features_of, load, token_at
from kv.types import SlotCopy
from tests.backend.factories import EOS, be

SETTINGS = SimSettings(num_blocks=8, num_host_slots=32, max_seq_len=64, verify=True)


def make_batch(request: Request, num_tokens: int, slots: range, **copies: SlotCopy) -> StepBatch:
    table = np.zeros((1, 64), np.int32)
    table[0, : len(slots)] = slots
    request.row = 0
    return StepBatch([request], [num_tokens], table, **copies)


def test_a_step_takes_its_time_on_the_virtual_clock_only() -> None:
    clock = VirtualClock()
    result = SimExecutor(SETTINGS, clock).execute(make_batch(be(10), 10, range(10)))
    c0, c1, _, c3, _ = SETTINGS.coefficients
    assert clock.now_s() == result.duration_s == pytest.approx(c0 + 10 * c1 + 50 * c3)


def test_on_another_clock_it_sleeps() -> None:
    clock = MonotonicClock()
    start_s = clock.now_s()
    result = load(SimSettings(coefficients=(2e-3, 0, 0, 0, 0)), clock).execute(make_batch(be(4), 4, range(4)))
    assert clock.now_s() - start_s >= result.duration_s == pytest.approx(2e-3)


def test_a_token_depends_on_request_and_position_only() -> None:
    tokens = {token_at(SETTINGS, f"r{request}", position) for request in range(20) for position in range(20)}
    assert len(tokens) > 390
    assert EOS not in tokens
    whole, chunked = be(10, request_id="a"), be(10, request_id="a")
    executor = SimExecutor(SETTINGS, VirtualClock())
    first = executor.execute(make_batch(whole, 10, range(10))).token_ids
    assert executor.execute(make_batch(chunked, 6, range(6))).token_ids == [None]
    chunked.num_computed = 6
    assert executor.execute(make_batch(chunked, 4, range(10))).token_ids == first


def test_an_overwritten_slot_is_found() -> None:
    executor = SimExecutor(SETTINGS, VirtualClock())
    victim, intruder = be(10), be(4)
    executor.execute(make_batch(victim, 10, range(10)))
    executor.execute(make_batch(intruder, 4, range(5, 9)))
    victim.num_computed = 10
    victim.token_ids.append(1)
    with pytest.raises(AssertionError, match="position 5 was overwritten"):
        executor.execute(make_batch(victim, 1, range(11)))


def test_a_copy_to_the_host_and_back_restores_what_was_there() -> None:
    executor = SimExecutor(SETTINGS, VirtualClock())
    request, other = be(10), be(6)
    executor.execute(make_batch(request, 10, range(10)))
    slots = np.arange(6, dtype=np.int32)
    away = SlotCopy(device_slots=slots + 4, host_slots=slots)
    executor.execute(make_batch(other, 6, range(4, 10), copies_out=away))
    request.num_computed = 10
    request.token_ids.append(1)
    back = SlotCopy(device_slots=slots + 20, host_slots=slots)
    table = np.zeros((1, 64), np.int32)
    table[0, :11] = [0, 1, 2, 3, 20, 21, 22, 23, 24, 25, 26]
    result = executor.execute(StepBatch([request], [1], table, copies_in=back))
    assert len(result.token_ids) == 1


def test_faults_come_at_the_stated_rate_and_repeat_with_the_seed() -> None:
    def failing_steps() -> list[int]:
        executor = SimExecutor(SimSettings(fault_rate=0.1, seed=3), VirtualClock())
        failed = []
        for step in range(500):
            try:
                executor.execute(make_batch(be(4), 4, range(4)))
            except ExecutorError:
                failed.append(step)
        return failed

    assert failing_steps() == failing_steps()
    assert 25 <= len(failing_steps()) <= 80


def test_the_capacity_is_the_settings() -> None:
    capacity = SimExecutor(SETTINGS, VirtualClock()).capacity()
    assert (capacity.num_blocks, capacity.num_host_slots, capacity.max_seq_len) == (8, 32, 64)


def test_features_tell_decodes_from_chunks() -> None:
    decode, chunk = be(10), be(40)
    decode.num_computed, chunk.num_computed = 9, 8
    batch = StepBatch([decode, chunk], [1, 20], np.zeros((1, 64), np.int32))
    features = features_of(batch)
    assert (features.new_tokens, features.context_tokens, features.prefill_pairs) == (21, 9, 20 * (8 + 10))
    assert (features.num_decodes, features.num_prefills) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_blocks", 0),
        ("max_seqs_per_step", -1),
        ("num_host_slots", -1),
        ("noise_ratio", float("nan")),
        ("stall_s", float("inf")),
        ("fault_rate", 1.1),
        ("coefficients", (8e-3, -1e-6, 0.0, 0.0, 0.0)),
        ("vocab_size", 260),
        ("eos_token_id", 32_000),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"sim\.{name}: {re.escape(str(value))} is not "):
        SimSettings(**{name: value})  # type: ignore[arg-type]  # out of range on purpose
