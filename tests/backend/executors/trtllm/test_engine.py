"""The engine's face over TensorRT-LLM: streams, ends, cancellation, errors, shutdown. Both modes keep the promises."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import backend.executors.trtllm.engine as engine_module
from backend.core.clock import VirtualClock
from backend.core.errors import ExecutorError, OverloadedError
from backend.core.plan import RankedLogProb
from backend.core.request import PriorityClass, SamplingParams
from backend.engine.engine import Cancel, Inspect, Submit
from backend.executors.foreign.answers import log_prob_at
from backend.executors.trtllm.settings import TrtllmMode
from backend.policy.settings import SchedulerSettings
from tests.backend.executors.trtllm.driver import Rig, make_rig
from tests.backend.executors.trtllm.fake_executor import FakeLlm, make_executor, token_of
from tests.backend.factories import be, make_request, rt

MODES = (TrtllmMode.INNER, TrtllmMode.OUTER)


def make(
    monkeypatch: pytest.MonkeyPatch,
    mode: TrtllmMode = TrtllmMode.INNER,
    scheduler: SchedulerSettings | None = None,
    **knobs: Any,
) -> Rig:
    clock = VirtualClock()
    return make_rig(monkeypatch, make_executor(clock=clock, **knobs), clock, mode=mode, scheduler=scheduler)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_come_one_by_one_and_in_order(monkeypatch: pytest.MonkeyPatch, mode: TrtllmMode) -> None:
    request = rt(max_tokens=5)
    transcript = make(monkeypatch, mode).play([request])
    assert transcript.token_ids[request.request_id] == [token_of(0, position) for position in range(5)]
    assert len(set(transcript.token_times_s[request.request_id])) == 5
    assert request.token_ids[request.num_prompt :] == transcript.token_ids[request.request_id]
    assert transcript.ends[request.request_id] == "length"


def test_times_and_counts_are_on_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    request = rt(max_tokens=3, arrival_s=1.0)
    world = make(monkeypatch)
    world.clock.advance_to(1.0)
    times_s = world.play([request]).token_times_s[request.request_id]
    assert request.first_scheduled_s == 1.0
    assert request.first_token_s == times_s[0]
    assert request.num_computed == request.num_prompt + 2


def test_the_tokens_of_a_step_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = make(monkeypatch).play([be(max_tokens=4) for _ in range(6)])
    assert max(len(output.tokens) for output in transcript.outputs) == 6
    assert len(transcript.outputs) == 4


def test_log_probs_come_with_their_tokens_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = be(sampling=SamplingParams(max_tokens=3, wants_log_probs=True))
    unwanted = be(max_tokens=3)
    transcript = make(monkeypatch).play([wanted, unwanted])
    assert transcript.log_probs[wanted.request_id] == [-0.5] * 3
    assert transcript.log_probs[unwanted.request_id] == [None] * 3


def test_a_log_prob_that_tensorrt_llm_left_out_is_none() -> None:
    log_probs = [{7: SimpleNamespace(logprob=-1.0)}]
    assert log_prob_at(log_probs, 0, 7) == -1.0
    assert log_prob_at(log_probs, 0, 8) is None
    assert log_prob_at(log_probs, 1, 7) is None


def test_a_stop_token_ends_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    request = be(max_tokens=50)
    world = make(monkeypatch)
    world.executor.eos_after = lambda _: 4
    transcript = world.play([request])
    assert transcript.ends[request.request_id] == "stop"
    assert len(transcript.token_ids[request.request_id]) == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_request_ends_at_once_and_frees_its_place_later(
    monkeypatch: pytest.MonkeyPatch, mode: TrtllmMode
) -> None:
    victim, other = be(max_tokens=500), be(max_tokens=60)
    world = make(monkeypatch, mode)
    transcript = world.play([victim, other], cancels=[(0.2, victim)])
    assert transcript.ends == {victim.request_id: "cancelled", other.request_id: "length"}
    assert transcript.token_times_s[victim.request_id][-1] <= 0.25
    world.executor.assert_nothing_leaked()
    world.engine._gate.check_invariants()
    assert world.engine._gate.requests() == []


def test_a_waiting_request_is_cancelled_without_tensorrt_llm_ever_seeing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [be(max_tokens=30) for _ in range(20)]
    world = make(monkeypatch, max_active=12)
    transcript = world.play(requests, cancels=[(0.05, requests[-1])])
    assert transcript.ends[requests[-1].request_id] == "cancelled"
    assert len(world.llm.submitted) == 19


def test_cancelling_what_is_unknown_or_over_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    request, unknown = be(max_tokens=3), be()
    transcript = make(monkeypatch).play([request, rt(arrival_s=9.0)], cancels=[(5.0, request), (5.0, unknown)])
    assert transcript.ends[request.request_id] == "length"


def test_what_tensorrt_llm_refuses_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    request = be()
    world = make(monkeypatch)
    world.llm.refuse = "prompt is odd"
    assert "prompt is odd" in world.play([request]).ends[request.request_id]
    assert world.engine.error is None


@pytest.mark.parametrize("mode", MODES)
def test_a_dead_executor_fails_every_request_once_and_ends_the_engine(
    monkeypatch: pytest.MonkeyPatch, mode: TrtllmMode
) -> None:
    world = make(monkeypatch, mode)
    monkeypatch.setattr(world.executor, "step_time_s", lambda _: 1 / 0)
    requests = [be(), rt()]
    with pytest.raises(ExecutorError, match="shut down"):
        world.play(requests)
    assert set(world.transcript.num_ends.values()) == {1}
    assert len(world.transcript.ends) == 2
    assert world.llm.is_shut_down


def test_an_answer_that_ends_without_a_reason_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    request = be(max_tokens=100)
    world = make(monkeypatch)

    def end_oddly() -> None:
        if world.executor.num_iterations == 3:
            entry = world.executor.active[0]
            entry.output.respond([], [], "none")
            world.executor._end(entry)

    assert "without a reason" in world.play([request], after_iteration=end_oddly).ends[request.request_id]


def test_an_error_after_a_cancellation_is_no_second_end(monkeypatch: pytest.MonkeyPatch) -> None:
    request = be(max_tokens=100)
    world = make(monkeypatch)

    def cancel_then_fail() -> None:
        if world.executor.num_iterations == 3:
            world.engine.post(Cancel(request.request_id))
        if world.executor.num_iterations == 4:
            entry = world.executor.active[0]
            entry.output.respond([], [], error="too late to matter")
            world.executor._end(entry)

    assert world.play([request], after_iteration=cancel_then_fail).ends[request.request_id] == "cancelled"


@pytest.mark.parametrize("mode", MODES)
def test_stopping_fails_what_is_inside_what_waits_and_what_was_just_posted(
    monkeypatch: pytest.MonkeyPatch, mode: TrtllmMode
) -> None:
    world = make(monkeypatch, mode, max_active=10)
    late = be()

    async def scenario() -> None:
        serving = asyncio.get_running_loop().create_task(world.engine.serve())
        for request in requests:
            world.engine.post(Submit(request))
        for _ in range(10):
            await asyncio.sleep(0)
        world.executor.step()
        world.engine.stop()
        world.engine.post(Submit(late))
        await serving

    requests = [be(max_tokens=50) for _ in range(5)]
    asyncio.run(scenario())
    assert len(world.transcript.ends) == 6
    assert set(world.transcript.num_ends.values()) == {1}
    assert all("the engine stopped" in end for end in world.transcript.ends.values())
    assert world.llm.is_shut_down


def test_run_serves_on_its_own_thread_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)
    has_looked = threading.Event()
    thread = threading.Thread(target=world.engine.run)
    world.engine.post(Inspect(lambda _: has_looked.set()))
    thread.start()
    assert has_looked.wait(10.0)
    world.engine.stop()
    thread.join(10.0)
    assert not thread.is_alive()
    assert world.engine.error is None


def test_run_keeps_the_error_that_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)

    def admit(_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(world.engine._gate, "admit", admit)
    with pytest.raises(ZeroDivisionError):
        world.engine.run()
    assert isinstance(world.engine.error, ZeroDivisionError)


def test_a_look_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)

    def look(_: object) -> None:
        raise ZeroDivisionError("a bug")

    world.engine.post(Inspect(look))
    world.engine.post(Inspect(lambda _: world.engine.stop()))
    world.engine.run()
    assert world.engine.error is None


def test_a_full_inbox_takes_cancellations_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_INBOX", 2)
    engine = make(monkeypatch).engine
    request = be()
    engine.post(Submit(request))
    engine.post(Submit(be()))
    with pytest.raises(OverloadedError):
        engine.post(Submit(be()))
    engine.post(Cancel(request.request_id))


def test_overdue_requests_are_refused_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SchedulerSettings(refuse_hopeless_rt=True)
    world = make(monkeypatch, TrtllmMode.INNER, settings, max_active=9)
    requests = [rt(num_prompt=500, max_tokens=100, ttft_slo_s=0.2) for _ in range(12)]
    ends = world.play(requests).ends
    assert sum("ran out" in end for end in ends.values()) == 3


def test_too_large_and_too_many_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, scheduler=SchedulerSettings(max_waiting_be=1), max_active=9)
    huge, *others = be(num_prompt=5000), be(), be(), be()
    ends = world.play([huge, *others]).ends
    assert "exceed 4096" in ends[huge.request_id]
    assert world.engine.max_seq_len == 4096
    assert sorted("queue" in ends[request.request_id] for request in others) == [False, True, True]


def test_a_salt_that_this_version_does_not_know_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    salted, plain = make_request(cache_salt="tenant-a"), be()
    ends = make(monkeypatch).play([salted, plain]).ends
    assert ends[salted.request_id].startswith("cache_salt: this TensorRT-LLM")
    assert ends[plain.request_id] == "length"


class SaltedLlm(FakeLlm):
    """`LLM` that keeps requests of different salts apart."""

    salts: tuple[str | None, ...] = ()

    def generate_async(self, inputs: list[int], *rest: Any, cache_salt: str | None = None, **options: Any) -> Any:
        self.salts += (cache_salt,)
        return super().generate_async(inputs, *rest, **options)


def test_a_version_that_knows_salts_is_told_them(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_executor(clock=(clock := VirtualClock()))
    llm = SaltedLlm(executor)
    make_rig(monkeypatch, executor, clock, llm=llm).play([make_request(cache_salt="tenant-a"), be()])
    assert set(llm.salts) == {"tenant-a", None}


@pytest.mark.parametrize("mode", MODES)
def test_statistics_count_who_waits_and_who_runs(monkeypatch: pytest.MonkeyPatch, mode: TrtllmMode) -> None:
    world = make(monkeypatch, mode)
    seen: list[Any] = []
    requests = [rt(max_tokens=20), be(max_tokens=20), be(max_tokens=20)]

    def look() -> None:
        if world.executor.num_iterations == 10:
            world.engine.post(Inspect(lambda scheduler: seen.append(scheduler.stats())))

    world.play(requests, after_iteration=look)
    counts = seen[0].requests
    assert counts[PriorityClass.REAL_TIME].num_running == 1
    assert counts[PriorityClass.BEST_EFFORT].num_running == (2 if mode is TrtllmMode.INNER else 1)
    assert world.engine.honours_plans is (mode is TrtllmMode.INNER)
    assert (seen[0].total_steps > 0) is (mode is TrtllmMode.INNER)
    usage = seen[0].kv
    assert usage.num_free_blocks + usage.num_head_blocks + usage.num_tail_blocks > 0


def test_a_request_leaves_the_outer_gate_only_when_tensorrt_llm_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, TrtllmMode.OUTER)
    request = be(max_tokens=100)
    inside: list[int] = []
    world.play(
        [request],
        cancels=[(0.1, request)],
        after_iteration=lambda: inside.append(world.engine._gate.num_inside(PriorityClass.BEST_EFFORT)),
    )
    assert inside[-1] == 1
    assert world.engine._gate.num_inside(PriorityClass.BEST_EFFORT) == 0


def test_the_engine_wakes_when_a_waiting_request_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)
    monkeypatch.setattr(world.engine._gate, "next_refusal_s", world.clock.now_s)
    asyncio.run(asyncio.wait_for(world.engine._wait_for_work(), 10.0))
    assert not world.engine._wake.is_set()  # it was the time, not a message


def test_the_likeliest_log_probs_come_in_their_order_where_wanted() -> None:
    entries = {token_id: SimpleNamespace(logprob=-float(token_id)) for token_id in (3, 1, 2)}
    ranked = log_prob_at([entries], 0, 3, num_top=2)
    assert isinstance(ranked, RankedLogProb)
    assert (float(ranked), ranked.top) == (-3.0, [(1, -1.0), (2, -2.0)])
