"""The adapters of both KV managers, one decision at a time, against schedulers that bite."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from backend.executors.trtllm import manager_v2
from backend.executors.trtllm.decision import Decision, Share
from backend.executors.trtllm.manager_v1 import ManagerV1
from backend.executors.trtllm.manager_v2 import ManagerV2
from tests.backend.executors.trtllm.fake_managers import (
    FakeKVManagerV1,
    FakeKVManagerV2,
    FakeSchedulerV1,
    FakeSchedulerV2,
)
from tests.backend.executors.trtllm.fake_requests import FakeLlmRequest, State


def running(request_id: int, num_tokens: int, kv: Any) -> FakeLlmRequest:
    """Return a request that decodes, with its KV in `kv`."""
    request = FakeLlmRequest(request_id, num_tokens, 100)
    request.context_current_position = num_tokens
    request.state = State.GENERATION_IN_PROGRESS
    request.num_tokens = num_tokens + 1
    if isinstance(kv, FakeKVManagerV1):
        kv.allocate(request)
    else:
        assert kv.prepare_context(request)
        assert kv.resize_context(request, 1)
    return request


def share(request: FakeLlmRequest, num_tokens: int = 1, reaches_end: bool = True, is_rt: bool = False) -> Share:
    return Share(request, num_tokens, reaches_end, is_rt)


def decide(
    shares: Sequence[Share] = (),
    victims: Sequence[Any] = (),
    withheld: Sequence[Any] = (),
    passed_on: Sequence[Any] = (),
) -> Decision:
    return Decision(passed_on, shares, victims, withheld)


def ids(requests: Sequence[Any]) -> list[int]:
    return [request.request_id for request in requests]


class TestV1:
    def test_a_victim_makes_room_in_the_same_step(self) -> None:
        kv = FakeKVManagerV1(10)
        victim, prompt = running(1, 255, kv), FakeLlmRequest(2, 64, 10)
        manager = ManagerV1(FakeSchedulerV1(kv, 8, 1024), kv)
        kv.num_foreign = 1
        output = manager.answer(decide([share(prompt, 64, is_rt=True)], [victim]), set())
        assert ids(output.context_requests) == [2]
        assert ids(output.paused_requests) == [1]

    def test_a_victim_is_paused_even_where_there_was_room(self) -> None:
        kv = FakeKVManagerV1(100)
        victim, other = running(1, 255, kv), running(2, 31, kv)
        output = ManagerV1(FakeSchedulerV1(kv, 8, 1024), kv).answer(decide([share(other)], [victim]), set())
        assert ids(output.generation_requests) == [2]
        assert ids(output.paused_requests) == [1]

    def test_a_victim_that_runs_after_all_is_not_paused(self) -> None:
        kv = FakeKVManagerV1(4)
        victim, prompt = running(1, 31, kv), FakeLlmRequest(2, 320, 10)
        output = ManagerV1(FakeSchedulerV1(kv, 8, 1024), kv).answer(decide([share(prompt, 320)], [victim]), set())
        assert not {1} & set(ids(output.paused_requests)) & set(ids(output.generation_requests))

    def test_a_best_effort_prompt_that_does_not_fit_whole_pauses_nobody(self) -> None:
        kv = FakeKVManagerV1(10)
        other, prompt = running(1, 255, kv), FakeLlmRequest(2, 320, 10)
        decision = decide([share(other), share(prompt, 32, reaches_end=False)])
        output = ManagerV1(FakeSchedulerV1(kv, 8, 1024), kv).answer(decision, set())
        assert ids(output.generation_requests) == [1]
        assert not output.context_requests
        assert not output.paused_requests

    def test_a_real_time_prompt_that_does_not_fit_whole_pauses_who_is_withheld(self) -> None:
        kv = FakeKVManagerV1(10)
        old, young = running(1, 127, kv), running(2, 127, kv)
        prompt = FakeLlmRequest(3, 160, 10)
        decision = decide([share(prompt, 160, is_rt=True)], withheld=[young, old])
        output = ManagerV1(FakeSchedulerV1(kv, 8, 1024), kv).answer(decision, set())
        assert ids(output.context_requests) == [3]
        assert ids(output.paused_requests) == [2]

    def test_chunks_come_in_whole_units(self) -> None:
        kv = FakeKVManagerV1(100)
        scheduler = FakeSchedulerV1(kv, 8, 1024)
        prompt = FakeLlmRequest(1, 320, 10)
        manager = ManagerV1(scheduler, kv)
        for planned, computed in ((10, 32), (40, 32), (60, 64), (320, 320)):
            manager.answer(decide([share(prompt, planned, reaches_end=planned == 320)]), set())
            assert prompt.context_chunk_size == computed

    def test_the_chunk_unit_is_a_block_where_the_version_does_not_say(self) -> None:
        kv = FakeKVManagerV1(100)
        scheduler = FakeSchedulerV1(kv, 8, 1024)
        del scheduler.micro_batch_scheduler.ctx_chunk_config
        assert ManagerV1(scheduler, kv)._chunk_unit == kv.tokens_per_block

    def test_its_own_limits_come_back(self) -> None:
        kv = FakeKVManagerV1(100)
        scheduler = FakeSchedulerV1(kv, 8, 1024)
        manager = ManagerV1(scheduler, kv)
        manager.answer(decide([share(FakeLlmRequest(1, 32, 10), 32)]), set())
        assert scheduler.micro_batch_scheduler.max_num_tokens == 32
        manager.release()
        assert scheduler.micro_batch_scheduler.max_num_tokens == 1024
        assert scheduler.micro_batch_scheduler.max_batch_size == 8


class TestV2:
    def manager(self, num_blocks: int = 100, num_host_blocks: int = 100, **knobs: Any) -> ManagerV2:
        kv = FakeKVManagerV2(num_blocks, num_host_blocks)
        return ManagerV2(FakeSchedulerV2(kv, 8, 1024, **knobs), kv, 0.95)

    def test_a_victim_is_suspended_before_the_real_time_prompt_allocates(self) -> None:
        manager = self.manager(10)
        victim, prompt = running(1, 255, manager._kv), FakeLlmRequest(2, 160, 10)
        output = manager.answer(decide([share(prompt, 160, is_rt=True)], [victim]), set())
        assert ids(output.context_requests) == [2]
        assert ids(output.paused_requests) == [1]
        assert not manager.is_resident(victim)

    def test_without_a_lower_tier_a_victim_is_recomputed(self) -> None:
        manager = self.manager(10, num_host_blocks=0)
        victim, prompt = running(1, 255, manager._kv), FakeLlmRequest(2, 160, 10)
        output = manager.answer(decide([share(prompt, 160, is_rt=True)], [victim]), set())
        assert ids(output.recompute_paused_requests) == [1]
        assert not output.paused_requests

    def test_a_victim_without_pages_is_left_alone(self) -> None:
        manager = self.manager()
        suspended = running(1, 31, manager._kv)
        manager._kv.suspend_request(suspended)
        other = running(2, 31, manager._kv)
        assert not manager.answer(decide([share(other)], [suspended]), set()).paused_requests

    @pytest.mark.parametrize("patience", [1, 1000], ids=["deadlock error at once", "deadlock error late"])
    def test_a_deadlock_is_broken_by_evicting_who_is_withheld(self, patience: int) -> None:
        manager = self.manager(10, patience=patience)
        blocked, withheld = running(1, 95, manager._kv), running(2, 191, manager._kv)
        manager._kv.suspend_request(blocked)
        manager._kv.num_foreign = 1
        output = manager.answer(decide([share(blocked)], withheld=[withheld]), set())
        assert ids(output.generation_requests) == [1]
        assert ids(output.paused_requests) == [2]

    def test_a_step_that_could_run_nothing_evicts_nobody_who_was_to_run(self) -> None:
        manager = self.manager(10, patience=1000)
        blocked, other = FakeLlmRequest(1, 64, 10), running(2, 31, manager._kv)
        other.state = State.GENERATION_TO_COMPLETE
        manager._kv.num_foreign = 9
        output = manager.answer(decide([share(blocked, 64)], passed_on=[other]), set())
        assert not output.paused_requests
        assert not output.context_requests

    def test_an_idle_step_evicts_nobody(self) -> None:
        manager = self.manager(10, patience=1000)
        ending, withheld = running(1, 31, manager._kv), running(2, 31, manager._kv)
        ending.state = State.GENERATION_TO_COMPLETE
        output = manager.answer(decide(withheld=[withheld], passed_on=[ending]), set())
        assert not output.paused_requests
        assert manager.is_resident(withheld)

    def test_a_deadlock_that_nobody_can_break_is_waited_out_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manager_v2, "_MAX_STALLED", 3)
        manager = self.manager(10)
        prompt = FakeLlmRequest(1, 64, 10)
        manager._kv.num_foreign = 10
        for _ in range(2):
            output = manager.answer(decide([share(prompt, 64)]), set())
            assert not output.context_requests
        with pytest.raises(RuntimeError, match="deadlock"):
            manager.answer(decide([share(prompt, 64)]), set())

    def test_a_stall_that_clears_is_forgotten(self) -> None:
        manager = self.manager(10)
        prompt = FakeLlmRequest(1, 64, 10)
        manager._kv.num_foreign = 10
        manager.answer(decide([share(prompt, 64)]), set())
        assert manager._num_stalled == 1
        manager._kv.num_foreign = 0
        assert ids(manager.answer(decide([share(prompt, 64)]), set()).context_requests) == [1]
        assert manager._num_stalled == 0

    def test_other_errors_of_the_inner_scheduler_are_not_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        manager = self.manager()

        def fail(*_: object) -> None:
            raise RuntimeError("out of something")

        monkeypatch.setattr(manager._inner, "schedule_request", fail)
        with pytest.raises(RuntimeError, match="out of something"):
            manager.answer(decide(), set())

    def test_nothing_to_run_is_an_empty_step(self) -> None:
        output = self.manager().answer(decide(), set())
        assert not output.context_requests
        assert not output.generation_requests

    def test_the_scarcest_page_group_counts(self) -> None:
        manager = self.manager()
        groups = [SimpleNamespace(total=100, available=40), SimpleNamespace(total=60, available=20)]
        manager._kv.impl.get_storage_statistics = lambda _: groups
        assert manager.num_free_blocks() == 15

    def test_where_the_scheduler_cannot_suspend_the_kv_manager_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(FakeSchedulerV2, "_suspend_request")
        manager = self.manager()
        victim = running(1, 31, manager._kv)
        assert ids(manager.answer(decide(victims=[victim]), set()).paused_requests) == [1]
        assert not manager.is_resident(victim)

    def test_its_own_limits_come_back(self) -> None:
        manager = self.manager()
        manager.answer(decide(), set())
        assert manager._inner.max_num_requests == 0
        manager.release()
        assert (manager._inner.max_num_tokens, manager._inner.max_num_requests) == (1024, 8)
