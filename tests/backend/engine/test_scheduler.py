"""The scheduler: admission, commit, the baselines' promises, failures of allocation, determinism."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from backend.core.errors import ExecutorError, InvalidRequestError, OverloadedError, RequestTooLargeError
from backend.core.plan import StepBatch, StepResult
from backend.core.request import FinishReason, PriorityClass, Request, RequestId, RequestState
from backend.engine.scheduler import Scheduler
from backend.policy.settings import POLICY_NAMES
from kv.budget import KVBudget
from tests.backend.factories import BE, RT, Harness, be, make_scheduler_for_test, rt


def step(scheduler: Scheduler, now_s: float, duration_s: float = 0.01) -> StepBatch:
    """Run one step whose samples are all 7."""
    batch = scheduler.commit(scheduler.plan(now_s))
    pairs = zip(batch.sequences, batch.num_new_tokens, strict=True)
    tokens = [7 if seq.num_computed + num == len(seq.token_ids) else None for seq, num in pairs]
    scheduler.complete(batch, StepResult(tokens, duration_s), now_s + duration_s)
    return batch


def run_steps(scheduler: Scheduler, num_steps: int) -> None:
    """Run steps, a tenth of a second apart."""
    for index in range(num_steps):
        step(scheduler, 0.1 * index)


# Admission


def test_a_request_beyond_the_context_is_refused_at_once() -> None:
    scheduler = make_scheduler_for_test(max_seq_len=100)
    with pytest.raises(RequestTooLargeError, match="exceed the context of 100 tokens"):
        scheduler.add(be(90, 11), 0.0)
    assert scheduler.is_idle


def test_a_request_beyond_the_kv_pool_is_refused_at_once() -> None:
    scheduler = make_scheduler_for_test(num_blocks=4, block_size=16)
    scheduler.add(be(60, 5), 0.0)  # the last token is never computed
    with pytest.raises(RequestTooLargeError, match="exceed the KV pool of 64 slots"):
        scheduler.add(be(60, 6), 0.0)


@pytest.mark.parametrize(("priority_class", "limit"), [(RT, "max_waiting_rt"), (BE, "max_waiting_be")])
def test_a_full_queue_refuses_with_retry_advice(priority_class: PriorityClass, limit: str) -> None:
    scheduler = make_scheduler_for_test(**{limit: 2})
    make = rt if priority_class is RT else be
    for _ in range(2):
        scheduler.add(make(), 0.0)
    with pytest.raises(OverloadedError, match=r"2 .. requests are waiting") as refusal:
        scheduler.add(make(), 0.0)
    assert refusal.value.retry_after_s > 0.0


@pytest.mark.parametrize("make", [rt, be])
def test_the_advice_is_the_time_that_the_queue_takes_to_empty(make: Callable[..., Request]) -> None:
    """One batch slot, ten steps of 0.1 s for each request: one request begins per second."""
    scheduler = make_scheduler_for_test(max_seqs_per_step=1, max_waiting_rt=12, max_waiting_be=12)
    for _ in range(12):
        scheduler.add(make(8, 10), 0.0)
    now_s = 0.0
    for _ in range(60):
        step(scheduler, now_s, 0.1)
        now_s += 0.1
    for _ in range(12 - len(scheduler.view.rt_waiting) - len(scheduler.view.be_waiting)):
        scheduler.add(make(8, 10, arrival_s=now_s), now_s)
    with pytest.raises(OverloadedError) as refusal:
        scheduler.add(make(8, 10, arrival_s=now_s), now_s)
    assert refusal.value.retry_after_s == pytest.approx(12.0, rel=0.4)


def test_the_advice_is_bounded_where_nothing_begins() -> None:
    scheduler = make_scheduler_for_test(max_seqs_per_step=1, max_waiting_be=1)
    scheduler.add(be(8, 2000), 0.0)
    step(scheduler, 0.0)
    scheduler.add(be(), 0.1)
    with pytest.raises(OverloadedError) as refusal:
        scheduler.add(be(), 1000.0)
    assert refusal.value.retry_after_s == 60.0


def test_a_queue_is_bounded_in_bytes_as_well() -> None:
    scheduler = make_scheduler_for_test(max_waiting_bytes=100_000)
    scheduler.add(be(1000), 0.0)
    with pytest.raises(OverloadedError, match=r"be requests of \d+ bytes are waiting.* max_waiting_bytes 100000"):
        scheduler.add(be(1000), 0.0)
    scheduler.add(rt(1000), 0.0)  # a queue of its own
    run_steps(scheduler, 20)
    scheduler.add(be(1000), 0.1)


def test_one_request_alone_may_wait_whatever_its_size() -> None:
    scheduler = make_scheduler_for_test(max_waiting_bytes=1)
    scheduler.add(be(1000), 0.0)
    assert scheduler.stats().requests[BE].num_waiting == 1


def test_one_full_queue_does_not_close_the_other() -> None:
    scheduler = make_scheduler_for_test(max_waiting_be=1)
    scheduler.add(be(), 0.0)
    scheduler.add(rt(), 0.0)
    assert scheduler.stats().requests[RT].num_waiting == 1


@pytest.mark.parametrize(
    "request_", [be(max_tokens=0), replace(rt(), slo=None)], ids=["no tokens wanted", "real-time without an SLO"]
)
def test_what_can_never_be_served_is_refused(request_: Request) -> None:
    with pytest.raises(InvalidRequestError):
        make_scheduler_for_test().add(request_, 0.0)


def test_an_id_that_is_being_served_is_refused() -> None:
    scheduler = make_scheduler_for_test()
    scheduler.add(be(request_id="a"), 0.0)
    with pytest.raises(InvalidRequestError, match="'a'"):
        scheduler.add(be(request_id="a"), 0.0)


def test_hopeless_real_time_is_refused_only_if_configured() -> None:
    hopeless = {"num_prompt": 3000, "ttft_slo_s": 0.01}
    make_scheduler_for_test().add(rt(**hopeless), 0.0)
    with pytest.raises(InvalidRequestError, match="TTFT SLO cannot be met"):
        make_scheduler_for_test(refuse_hopeless_rt=True).add(rt(**hopeless), 0.0)


# The step


def test_plan_changes_nothing() -> None:
    scheduler = make_scheduler_for_test(num_blocks=16, max_seq_len=200)
    for request in (be(100, 9), rt(50, 9), be(80, 9)):
        scheduler.add(request, 0.0)
        step(scheduler, 0.0)
    before = scheduler.stats()
    first, second = scheduler.plan(1.0), scheduler.plan(1.0)
    assert first == second
    assert scheduler.stats() == before


def test_a_batch_can_be_completed_only_once() -> None:
    scheduler = make_scheduler_for_test()
    scheduler.add(be(4, 2), 0.0)
    batch = step(scheduler, 0.0)
    with pytest.raises(AssertionError, match="nothing was committed"):
        scheduler.complete(batch, StepResult([7], 0.01), 0.0)


def test_a_failed_step_drops_the_copies_it_was_to_make() -> None:
    harness = Harness(num_blocks=8, max_seq_len=128, host_copy_s_per_token=1e-9)
    victim = be(100, 4)
    harness.submit(victim)
    harness.step(2)
    harness.submit(rt(60, 2))
    harness.engine._drain_inbox()  # the next step would preempt; take it apart
    plan = harness.scheduler.plan(harness.clock.now_s())
    assert [reclaim.checkpoint for reclaim in plan.reclaims] == [True]
    batch = harness.scheduler.commit(plan)
    assert len(batch.copies_out) > 0
    harness.scheduler.fail(batch, ExecutorError("boom"), harness.clock.now_s())
    assert victim.state is RequestState.PREEMPTED
    assert harness.scheduler.kv.num_restorable(victim.row) == 0  # type: ignore[arg-type]  # it kept its row
    harness.run()
    assert harness.reasons[victim.request_id] is FinishReason.LENGTH


def test_recomputed_and_copied_tokens_are_counted() -> None:
    for host_copy_s_per_token, is_copied in ((1e-9, True), (1.0, False)):
        harness = Harness(num_blocks=8, max_seq_len=128, host_copy_s_per_token=host_copy_s_per_token)
        harness.submit(be(100, 4))
        harness.step(2)
        harness.submit(rt(60, 2))
        harness.run()
        stats = harness.scheduler.stats()
        assert (stats.total_copied_in_tokens > 0) == is_copied
        assert (stats.total_recomputed_tokens > 0) != is_copied
        assert sum(stats.total_preemptions.values()) == 1


def test_the_engine_never_stands_still_while_every_request_waits_for_slots() -> None:
    """Two half-computed requests fill the pool between them; the older one gets on."""
    harness = Harness(num_blocks=8, max_seq_len=128, max_tokens_per_step=64, kv_headroom_ratio=0.0)
    harness.submit(be(100, 20), be(100, 20))
    harness.run(2000)


def test_the_first_step_of_a_request_is_noted_for_its_queue_time() -> None:
    scheduler, request = make_scheduler_for_test(), be(4, 2)
    scheduler.add(request, 1.0)
    step(scheduler, 3.0)
    step(scheduler, 4.0)
    assert request.first_scheduled_s == pytest.approx(3.0)


# Determinism

_TRACE_DIGEST = "from tests.backend.engine.test_golden import digest; print(digest('mixed'))"


def test_plans_do_not_depend_on_the_hash_seed() -> None:
    digests = set()
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _TRACE_DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1


# Memory that fails at the n-th allocation


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_an_allocation_that_finds_no_room_costs_a_step_and_no_request(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th allocation of a run is refused, for every n: every request still ends, by itself, once."""
    for failing in count(1):
        calls = count(1)
        with monkeypatch.context() as patch:
            for name in ("try_grow", "try_grow_each_by_one"):
                allocate = getattr(KVBudget, name)
                patch.setattr(
                    KVBudget,
                    name,
                    lambda budget, *args, allocate=allocate, calls=calls, failing=failing: (
                        allocate(budget, *args) if next(calls) != failing else 0
                    ),
                )
            harness = Harness(policy=policy, num_blocks=12, max_seq_len=128)
            harness.submit(rt(40, 8, request_id="a"), be(60, 8, request_id="b"), rt(50, 8, request_id="c"))
            for _ in range(100):
                harness.step()
                if harness.scheduler.is_idle:
                    break
        assert harness.reasons == dict.fromkeys("abc", FinishReason.LENGTH)
        if next(calls) <= failing:
            return


def test_a_plan_is_refused_once_the_cache_has_changed() -> None:
    scheduler = make_scheduler_for_test()
    scheduler.add(be(request_id="a"), 0.0)
    step(scheduler, 0.0)
    plan = scheduler.plan(0.1)
    scheduler.cancel(RequestId("a"), 0.1)
    with pytest.raises(AssertionError, match="the cache has changed"):
        scheduler.commit(plan)


@pytest.mark.parametrize(("reason", "is_learned"), [("STOP", True), ("CANCELLED", True), ("ERROR", False)])
def test_the_length_of_an_output_that_is_ended_from_outside_is_learned(reason: str, is_learned: bool) -> None:
    scheduler = make_scheduler_for_test()
    scheduler.add(rt(4, 8, request_id="begun"), 0.0)
    step(scheduler, 0.0)
    scheduler.add(rt(4, 8, request_id="waits"), 0.1)
    for name in ("begun", "waits"):
        scheduler.finish(RequestId(name), FinishReason[reason], 0.1)
    assert scheduler.view.traffic.rt_lengths.counts[0] == is_learned
