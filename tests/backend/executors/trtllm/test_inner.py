"""Inner mode on fakes of both KV managers: who runs, who gives way, and that nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from backend.core.clock import VirtualClock
from backend.core.plan import PreemptionKind
from backend.core.request import PriorityClass, Request
from backend.engine.stats import ClassCounts
from backend.executors.trtllm.inner import BrosRequestScheduler
from backend.policy.settings import SchedulerSettings
from kv.types import Side
from tests.backend.executors.trtllm.driver import Rig, Transcript, make_rig
from tests.backend.executors.trtllm.fake_executor import make_executor, token_of
from tests.backend.executors.trtllm.fake_requests import FakeLlmRequest, FakeRequestOutput, Output12, OutputMain
from tests.backend.factories import be, rt

MANAGERS = ("v1", "v2")


def make(
    monkeypatch: pytest.MonkeyPatch, manager: str = "v2", scheduler: SchedulerSettings | None = None, **knobs: Any
) -> Rig:
    clock = VirtualClock()
    return make_rig(monkeypatch, make_executor(manager, clock=clock, **knobs), clock, scheduler=scheduler)


def bros(world: Rig) -> BrosRequestScheduler:
    scheduler = world.executor.scheduler
    assert isinstance(scheduler, BrosRequestScheduler)
    return scheduler


def mixed(num_rt: int = 10, num_be: int = 40) -> list[Request]:
    return [be(num_prompt=400, max_tokens=100) for _ in range(num_be)] + [
        rt(num_prompt=200, max_tokens=20, arrival_s=0.5 + 0.3 * index) for index in range(num_rt)
    ]


def crowded() -> list[Request]:
    """Best-effort requests that will fill a pool of 80 blocks, then a burst of real-time ones that needs half of it."""
    burst = [rt(num_prompt=300, max_tokens=30, arrival_s=1.5) for _ in range(4)]
    return [be(num_prompt=400, max_tokens=200) for _ in range(12)] + burst


def assert_exact(world: Rig, transcript: Transcript) -> None:
    """Every client got its tokens in order, whatever happened to the request."""
    for index, asked in enumerate(world.submitted):
        expected = [token_of(index, position) for position in range(asked.sampling.max_tokens)]
        assert transcript.token_ids[asked.request_id] == expected
        assert transcript.ends[asked.request_id] == "length"
    assert bros(world).error is None
    assert not bros(world)._tickets._by_client_id, "a ticket leaked"
    world.executor.assert_nothing_leaked()


def num_preempted(world: Rig, kind: PreemptionKind) -> int:
    return world.engine.stats().total_preemptions.get((PriorityClass.BEST_EFFORT, kind), 0)


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("has_overlap", [False, True])
@pytest.mark.parametrize("num_blocks", [80, 1000])
def test_every_request_gets_its_tokens_and_one_end(
    monkeypatch: pytest.MonkeyPatch, manager: str, has_overlap: bool, num_blocks: int
) -> None:
    world = make(monkeypatch, manager, has_overlap=has_overlap, num_blocks=num_blocks)
    requests = mixed()

    def check() -> None:
        if world.executor.num_iterations % 10 == 0:
            bros(world).mirror.check_invariants()

    transcript = world.play(requests, after_iteration=check)

    assert len(world.llm.submitted) == len(requests)
    assert_exact(world, transcript)


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("output", [Output12, OutputMain])
def test_both_shapes_of_the_output_are_amended_not_built(
    monkeypatch: pytest.MonkeyPatch, manager: str, output: Any
) -> None:
    world = make(monkeypatch, manager, num_blocks=80, output=output)
    assert_exact(world, world.play(crowded()))


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("has_overlap", [False, True])
def test_real_time_takes_blocks_from_best_effort_and_is_in_time(
    monkeypatch: pytest.MonkeyPatch, manager: str, has_overlap: bool
) -> None:
    world = make(monkeypatch, manager, num_blocks=80, has_overlap=has_overlap)
    requests = crowded()
    transcript = world.play(requests)
    assert_exact(world, transcript)
    for request in requests:
        if request.is_rt:
            times_s = transcript.token_times_s[request.request_id]
            assert times_s[0] - request.arrival_s <= 0.4
            assert times_s[-1] - times_s[0] <= 0.2 * 29
    kind = PreemptionKind.RECOMPUTE if manager == "v1" else PreemptionKind.CHECKPOINT
    assert num_preempted(world, kind) > 0
    assert sum(request.num_preemptions for request in requests) == num_preempted(world, kind)


def test_a_tier_below_the_gpu_saves_the_work_that_recomputing_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = make(monkeypatch, num_blocks=80)
    assert_exact(kept, kept.play(crowded()))
    repeated = make(monkeypatch, num_blocks=80, num_host_blocks=0)
    assert_exact(repeated, repeated.play(crowded()))
    assert kept.engine.stats().total_recomputed_tokens == 0
    assert kept.engine.stats().total_copied_in_tokens > 0
    assert repeated.engine.stats().total_recomputed_tokens > 0
    assert num_preempted(repeated, PreemptionKind.RECOMPUTE) > 0


def test_the_headroom_keeps_resumes_from_being_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, num_blocks=80)
    world.play(crowded())
    assert world.engine.stats().total_copied_in_tokens > 0
    assert world.executor.kv_cache_manager.num_refused_resumes == 0


def test_refused_resumes_only_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, num_blocks=80)
    world.executor.kv_cache_manager.max_util_for_resume = 0.6  # stricter than TensorRT-LLM was configured
    assert_exact(world, world.play(crowded()))
    assert world.executor.kv_cache_manager.num_refused_resumes > 0


@pytest.mark.parametrize("manager", MANAGERS)
def test_withheld_requests_never_raise_the_deadlock_error(monkeypatch: pytest.MonkeyPatch, manager: str) -> None:
    knobs = {"patience": 1} if manager == "v2" else {}
    settings = SchedulerSettings(max_seqs_per_step=2)
    world = make(monkeypatch, manager, settings, num_blocks=60, **knobs)
    assert_exact(world, world.play(mixed(num_rt=4, num_be=8)))


def test_step_limits_are_kept_by_tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SchedulerSettings(max_seqs_per_step=3, max_tokens_per_step=128)
    world = make(monkeypatch, scheduler=settings)
    world.play([be(num_prompt=300, max_tokens=5) for _ in range(6)])
    assert max(len(context) + len(generation) for context, generation in world.executor.batches) == 3
    assert world.executor.scheduler._inner.max_num_tokens <= 128


@pytest.mark.parametrize("manager", MANAGERS)
def test_whole_prompts_are_planned_where_chunked_prefill_is_off(monkeypatch: pytest.MonkeyPatch, manager: str) -> None:
    knobs = {"chunking": False} if manager == "v2" else {}
    settings = SchedulerSettings(chunked_prefill=manager == "v2")
    world = make(monkeypatch, manager, settings, **knobs)
    requests = [be(num_prompt=200, max_tokens=5), rt(num_prompt=300, max_tokens=5), be(num_prompt=50, max_tokens=5)]
    assert_exact(world, world.play(requests))
    chunks = [request_id for context, _ in world.executor.batches for request_id in context]
    assert sorted(chunks) == [0, 1, 2]


def test_what_ours_does_not_know_is_asked_of_the_inner_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = bros(make(monkeypatch))
    assert scheduler.scheduling_state_range == scheduler._inner.scheduling_state_range
    assert scheduler.can_schedule([]) is True
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = scheduler.no_such_thing


@pytest.mark.parametrize("manager", MANAGERS)
def test_requests_that_are_not_ours_are_served_too(monkeypatch: pytest.MonkeyPatch, manager: str) -> None:
    world = make(monkeypatch, manager)
    foreign = FakeLlmRequest(999, prompt_len=40, max_new_tokens=5)

    async def scenario() -> None:
        output = FakeRequestOutput(999, world.executor)
        world.executor.enqueue(foreign, output, SimpleNamespace(logprobs=None))
        await world._play([be(max_tokens=30), rt(max_tokens=5)], (), float("inf"), lambda: None)

    asyncio.run(scenario())
    assert foreign.num_generated == 5
    assert set(world.transcript.ends.values()) == {"length"}
    world.executor.assert_nothing_leaked()


@pytest.mark.parametrize("manager", MANAGERS)
def test_blocks_that_something_else_holds_are_not_planned_with(monkeypatch: pytest.MonkeyPatch, manager: str) -> None:
    world = make(monkeypatch, manager, num_blocks=100)
    world.executor.kv_cache_manager.num_foreign = 60
    foreign: list[int] = []
    watch = lambda: foreign.append(bros(world).mirror.num_foreign_blocks)  # noqa: E731  # a probe
    assert_exact(world, world.play(mixed(num_rt=3, num_be=10), after_iteration=watch))
    assert max(foreign) == 60


def test_more_foreign_blocks_than_one_request_may_hold_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, num_blocks=200, max_seq_len=1024)
    world.executor.kv_cache_manager.num_foreign = 120
    room: list[int] = []

    def note_room() -> None:
        room.append(bros(world).mirror.budget().max_growth(None, Side.HEAD))

    world.play([be(num_prompt=100, max_tokens=3)], after_iteration=note_room)
    assert max(room) == (200 - 120 - 10 - 4) * 32  # less foreign ones, the headroom, and the request's own


def break_plan(scheduler: BrosRequestScheduler) -> None:
    scheduler.policy.plan = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]  # a bug of ours


def break_adopt(scheduler: BrosRequestScheduler) -> None:
    scheduler.mirror.adopt = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]  # a bug of ours


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("break_it", [break_plan, break_adopt])
def test_a_bug_of_ours_leaves_tensorrt_llm_to_schedule_by_itself(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    manager: str,
    break_it: Callable[[BrosRequestScheduler], None],
) -> None:
    world = make(monkeypatch, manager)

    def break_later() -> None:
        if world.executor.num_iterations == 5:
            break_it(bros(world))

    transcript = world.play(mixed(num_rt=2, num_be=5), after_iteration=break_later)
    assert set(transcript.ends.values()) == {"length"}
    assert not world.engine.honours_plans
    assert isinstance(bros(world).error, ZeroDivisionError)
    assert "TensorRT-LLM schedules by itself" in caplog.text
    world.executor.assert_nothing_leaked()


def test_the_latency_model_learns_the_executors_step_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_overlap in (False, True):
        world = make(monkeypatch, has_overlap=has_overlap)
        world.play(mixed())
        stats = world.engine.stats()
        assert stats.latency_error_ratio < 0.05
        assert stats.total_steps > 100


def test_an_idle_time_is_not_taken_for_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)
    world.play([be(max_tokens=50), be(max_tokens=50, arrival_s=1000.0)])
    assert bros(world).view.traffic.step_s < 0.1
    assert world.engine.stats().latency_error_ratio < 0.05


def test_requests_cancelled_inside_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, num_blocks=80)
    requests = crowded()
    cancels = [(1.6 + 0.01 * index, request) for index, request in enumerate(requests) if index % 2]
    transcript = world.play(requests, cancels=cancels)
    assert {transcript.ends[request.request_id] for _, request in cancels} == {"cancelled"}
    world.executor.assert_nothing_leaked()
    scheduler = bros(world)
    scheduler.active.catch_up(scheduler.mirror, [], world.clock.now_s())
    assert world.engine.stats().kv.num_free_blocks == 76
    assert list(bros(world).mirror.twins()) == []


def test_best_effort_deadlines_reach_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, max_active=10)
    urgent = be(num_prompt=100, max_tokens=10, deadline_s=2.0)
    transcript = world.play([*(be(num_prompt=900, max_tokens=300) for _ in range(1)), urgent])
    assert transcript.token_times_s[urgent.request_id][-1] <= 2.0


@pytest.mark.parametrize("manager", ["v1", "v2"])
def test_statistics_show_nobody_when_the_loop_has_gone_idle(monkeypatch: pytest.MonkeyPatch, manager: str) -> None:
    clock = VirtualClock()
    world = make_rig(monkeypatch, make_executor(manager, clock=clock), clock)
    world.play([rt(), be()])
    stats = world.engine.stats()
    assert stats.total_steps
    assert set(stats.requests.values()) == {ClassCounts(0, 0, 0)}
    assert stats.kv.num_head_slots == stats.kv.num_tail_slots == 0
    assert stats.kv.num_free_slots == bros(world).view.limits.num_slots
