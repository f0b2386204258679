"""The mirror: what it makes of the active list, and that its books follow TensorRT-LLM's."""

from __future__ import annotations

from typing import Any

import pytest

from backend.core.request import Request, RequestState
from backend.executors.foreign.mirror import Mirror, Queues, Scheduled
from backend.executors.foreign.source import Ticket
from backend.executors.trtllm.active import ActiveRequests
from backend.executors.trtllm.manager_v2 import ManagerV2
from backend.executors.trtllm.tickets import Tickets
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.waiting_queue import WaitingQueue
from tests.backend.executors.trtllm.fake_managers import FakeKVManagerV2, FakeSchedulerV2
from tests.backend.executors.trtllm.fake_requests import FakeLlmRequest, FakeRequestOutput, State
from tests.backend.factories import be, rt


class World:
    """A mirror over a V2 manager, and requests inside TensorRT-LLM."""

    def __init__(self, num_blocks: int = 100) -> None:
        self.kv = FakeKVManagerV2(num_blocks, 100)
        queues = Queues(*(WaitingQueue(lambda request: request.arrival_index) for _ in range(3)))
        self.tickets = Tickets()
        manager = ManagerV2(FakeSchedulerV2(self.kv, 8, 1024), self.kv, 1.0)
        self.source = ActiveRequests(manager, self.tickets)
        self.mirror = Mirror(self.source, queues, 4096, LatencyModel())
        self.active: list[Any] = []

    def add(self, request: Request) -> FakeLlmRequest:
        request.arrival_index = len(self.active)
        client_id = 100 + len(self.active)
        self.tickets.submit(Ticket(request), lambda: FakeRequestOutput(client_id, None))
        llm = FakeLlmRequest(len(self.active), request.num_prompt, request.sampling.max_tokens, client_id)
        self.active.append(llm)
        return llm

    def look(self, now_s: float = 0.0) -> list[float]:
        deadlines_s = self.source.catch_up(self.mirror, self.active, now_s)
        self.mirror.check_invariants()
        return deadlines_s

    def twin_request(self, llm: FakeLlmRequest) -> Request:
        return next(twin.request for twin in self.mirror.twins() if twin.handle is llm)

    def compute(self, llm: FakeLlmRequest, num_tokens: int) -> None:
        """Run a step of TensorRT-LLM for `llm`: schedule, allocate, compute."""
        assert self.kv.prepare_context(llm)
        assert self.kv.resize_context(llm, num_tokens)
        self.mirror.adopt([Scheduled(llm.py_request_id, num_tokens)], 0.0)
        llm.context_current_position += num_tokens


def test_a_newcomer_waits_until_tensorrt_llm_runs_it() -> None:
    world = World()
    llm = world.add(be(num_prompt=100))
    world.look()
    assert world.twin_request(llm).state is RequestState.WAITING
    world.compute(llm, 64)
    world.look()
    request = world.twin_request(llm)
    assert (request.state, request.num_computed) == (RequestState.RUNNING, 64)
    assert len(world.mirror.queues.be) == 0


def test_a_request_that_began_without_being_scheduled_is_taken_as_running() -> None:
    world = World()
    llm = world.add(be(num_prompt=100))
    assert world.kv.prepare_context(llm)
    assert world.kv.resize_context(llm, 32)
    llm.context_current_position = 32  # a prefix was found in the cache while it was tried
    world.look()
    assert world.twin_request(llm).num_computed == 32


def test_tokens_set_the_next_deadlines() -> None:
    world = World()
    llm = world.add(rt(num_prompt=32, max_tokens=5, ttft_slo_s=1.0, tpot_slo_s=0.1))
    world.look()
    world.compute(llm, 32)
    llm.state = State.GENERATION_IN_PROGRESS
    table = world.mirror.table
    llm.num_tokens += 1
    world.look(now_s=0.4)
    (row,) = table.rows()
    assert table.deadline_s[row] == pytest.approx(0.5)
    llm.num_tokens += 1
    world.look(now_s=0.45)
    assert table.deadline_s[row] == pytest.approx(0.6)


def test_a_step_that_was_scheduled_and_then_dropped_gives_its_blocks_back() -> None:
    world = World()
    llm = world.add(be(num_prompt=320))
    world.look()
    world.compute(llm, 32)
    world.look()
    world.mirror.adopt(
        [Scheduled(llm.py_request_id, 256)], 0.0
    )  # TensorRT-LLM waits for a larger batch, and runs nothing
    assert world.mirror.usage().num_tail_blocks == 9
    world.look()
    assert world.mirror.usage().num_tail_blocks == 1


def test_a_suspended_request_is_preempted_with_its_kv_on_the_host() -> None:
    world = World()
    llm = world.add(be(num_prompt=100))
    world.look()
    world.compute(llm, 64)
    world.look()
    world.kv.suspend_request(llm)
    world.look()
    request = world.twin_request(llm)
    assert (request.state, request.num_computed) == (RequestState.PREEMPTED, 0)
    assert request.row is not None
    assert world.mirror.num_restorable(request.row) == 64
    assert world.mirror.usage().num_tail_blocks == 0


def test_shared_prefixes_never_overfill_the_books() -> None:
    world = World(num_blocks=4)
    requests = [world.add(be(num_prompt=64)) for _ in range(4)]
    world.look()
    for llm in requests:  # all four share the same two blocks in TensorRT-LLM
        world.mirror.adopt([Scheduled(llm.py_request_id, 64)], 0.0)
        llm.context_current_position = 64
        world.kv.prepare_context(llm)
    world.look()
    assert world.mirror.usage().num_free_blocks == 0


def test_a_request_whose_last_step_is_in_flight_is_passed_on() -> None:
    world = World()
    llm = world.add(be(num_prompt=32))
    world.look()
    world.compute(llm, 32)
    llm.state = State.GENERATION_TO_COMPLETE
    world.look()
    assert world.source.passed_on == [llm]
