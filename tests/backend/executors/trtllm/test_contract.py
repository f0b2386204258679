"""The adapter against TensorRT-LLM's real schedulers, where a copy of its source is at hand (BROS_TRTLLM_SOURCE)."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backend.core.clock import VirtualClock
from backend.core.request import PriorityClass
from backend.policy.settings import SchedulerSettings
from tests.backend.executors.trtllm.driver import Rig, make_rig
from tests.backend.executors.trtllm.fake_executor import make_executor
from tests.backend.executors.trtllm.real_source import VARIABLE, RealSource, WaitingQueuePolicy, load
from tests.backend.executors.trtllm.test_inner import assert_exact, bros, crowded, mixed
from tests.backend.factories import be, rt

pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"{VARIABLE} is not set: no copy of TensorRT-LLM's source to test against"
)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> RealSource:
    return load(Path(os.environ[VARIABLE]), monkeypatch)


@pytest.fixture(params=["v1", "v2", "v2 without a tier"])
def manager(request: pytest.FixtureRequest, source: RealSource) -> str:
    if request.param != "v1" and source.scheduler_v2 is None:
        pytest.skip("this version has no scheduler for KV manager V2")
    if request.param == "v2 without a tier" and not hasattr(
        source.scheduler_v2.KVCacheV2Scheduler, "_recompute_pause_request"
    ):
        pytest.skip("this version preempts only into a tier below the GPU")
    return str(request.param)


def make(
    monkeypatch: pytest.MonkeyPatch,
    source: RealSource,
    manager: str,
    scheduler: SchedulerSettings | None = None,
    **knobs: Any,
) -> Rig:
    """Return a rig whose executor asks the real scheduler."""
    clock = VirtualClock()
    make_scheduler = source.make_v1 if manager == "v1" else source.make_v2
    if manager == "v2 without a tier":
        knobs["num_host_blocks"] = 0
    executor = make_executor(manager[:2], clock=clock, make_scheduler=make_scheduler, **knobs)
    return make_rig(monkeypatch, executor, clock, scheduler=scheduler)


@pytest.mark.parametrize("has_overlap", [False, True])
def test_every_request_gets_its_tokens(
    monkeypatch: pytest.MonkeyPatch, source: RealSource, manager: str, has_overlap: bool
) -> None:
    world = make(monkeypatch, source, manager, num_blocks=80, has_overlap=has_overlap)
    assert_exact(world, world.play(mixed()))


def test_only_best_effort_gives_way_to_real_time(
    monkeypatch: pytest.MonkeyPatch, source: RealSource, manager: str
) -> None:
    world = make(monkeypatch, source, manager, num_blocks=80)
    requests = crowded()
    transcript = world.play(requests)
    assert_exact(world, transcript)
    preempted = {cls for cls, _ in world.engine.stats().total_preemptions}
    assert preempted == {PriorityClass.BEST_EFFORT}
    for request in requests:
        if request.is_rt:
            assert transcript.token_times_s[request.request_id][0] - request.arrival_s <= 0.4


def test_withheld_requests_raise_no_deadlock(monkeypatch: pytest.MonkeyPatch, source: RealSource, manager: str) -> None:
    if source.scheduler_v2 is not None and hasattr(source.scheduler_v2.KVCacheV2Scheduler, "_DEADLOCK_STALL_ITERS"):
        monkeypatch.setattr(source.scheduler_v2.KVCacheV2Scheduler, "_DEADLOCK_STALL_ITERS", 1)
    world = make(monkeypatch, source, manager, SchedulerSettings(max_seqs_per_step=2), num_blocks=60)
    assert_exact(world, world.play(mixed(num_rt=4, num_be=8)))


def test_step_limits_are_kept(monkeypatch: pytest.MonkeyPatch, source: RealSource, manager: str) -> None:
    settings = SchedulerSettings(max_seqs_per_step=3, max_tokens_per_step=128)
    world = make(monkeypatch, source, manager, settings)
    assert_exact(world, world.play([be(num_prompt=300, max_tokens=5) for _ in range(6)]))
    assert max(len(context) + len(generation) for context, generation in world.executor.batches) <= 3


def test_the_wrapper_forwards_every_abstract_member(
    monkeypatch: pytest.MonkeyPatch, source: RealSource, manager: str
) -> None:
    scheduler = bros(make(monkeypatch, source, manager))
    for name in source.scheduler.RequestScheduler.__abstractmethods__:
        assert hasattr(scheduler, name), f"{name} is not answered"


def test_the_output_can_be_amended_by_keyword(source: RealSource) -> None:
    fields = source.scheduler.SchedulerOutput._fields
    assert {"context_requests", "generation_requests", "paused_requests"} <= set(fields)


def test_the_priority_queue_puts_real_time_first(source: RealSource) -> None:
    if source.waiting_queue is None:
        pytest.skip("this version has no waiting queues")
    queue = source.waiting_queue.create_waiting_queue(WaitingQueuePolicy.PRIORITY)
    for request_id, priority in enumerate((0.0, 1.0, 0.0, 1.0)):
        queue.add_request(SimpleNamespace(id=request_id, request=SimpleNamespace(priority=priority)))
    assert [queue.pop_request().id for _ in range(4)] == [1, 3, 0, 2]


def test_a_request_that_is_too_late_is_still_served(
    monkeypatch: pytest.MonkeyPatch, source: RealSource, manager: str
) -> None:
    world = make(monkeypatch, source, manager)
    hopeless = rt(num_prompt=2000, max_tokens=3, ttft_slo_s=0.001)
    assert world.play([hopeless, be()]).ends[hopeless.request_id] == "length"
