"""Best-effort work enters in what real-time leaves, the oldest first."""

from __future__ import annotations

from backend.core.request import RequestState
from tests.backend.factories import Harness, be, rt
from tests.backend.policy.driving import make, start, start_as_predicted, step


def test_late_requests_stay_ahead_of_best_effort() -> None:
    scheduler = make(max_tokens_per_step=32)
    best_effort, late = be(32, 2), rt(32, 2, ttft_slo_s=0.1)
    for request in (best_effort, late):
        scheduler.add(request, 1.0)
    assert list(scheduler.plan(1.0).num_new_tokens) == [late]


def test_the_oldest_best_effort_decode_goes_first() -> None:
    scheduler = make(responsiveness_cap_s=10.0)
    older, younger, youngest = be(10, 90), be(10, 20), be(10, 50)
    start(scheduler, older)
    start(scheduler, younger)
    start(scheduler, youngest)
    scheduler.cancel(older.request_id, 0.0)
    scheduler.add(newest := be(10, 30), 0.0)  # takes the row of the oldest
    step(scheduler, 0.0)
    scheduler.add(rt(4, 5), 0.0)
    order = [request for request in scheduler.plan(0.0).num_new_tokens if not request.is_rt]
    assert order == [younger, youngest, newest]


def test_an_urgent_finish_by_deadline_overtakes_older_best_effort() -> None:
    scheduler = make(max_tokens_per_step=64)
    older, urgent = be(64, 5), be(64, 5, deadline_s=0.12)
    for request in (older, urgent):
        scheduler.add(request, 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens) == [urgent]


def test_a_distant_finish_by_deadline_waits_its_turn() -> None:
    scheduler = make(max_tokens_per_step=64)
    older, distant = be(64, 5), be(64, 5, deadline_s=1000.0)
    for request in (older, distant):
        scheduler.add(request, 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens) == [older]


def test_a_preempted_request_waits_until_all_it_lost_fits() -> None:
    harness = Harness(num_blocks=8, max_seq_len=128)
    victim = be(110, 3)
    harness.submit(victim)
    harness.step()
    harness.submit(rt(60, 10))
    harness.step(2)
    assert victim.state is RequestState.PREEMPTED
    held = victim.num_computed
    harness.step(5)
    assert victim.num_computed <= held
    harness.run()
    assert len(harness.tokens[victim.request_id]) == 3


def test_short_requests_do_not_keep_a_long_one_waiting() -> None:
    """A client whose short requests never ended coming made another's stream stand still for as long as it liked."""
    scheduler = make(max_seqs_per_step=16, num_blocks=2000, responsiveness_cap_s=0.0108)  # time for eight tokens
    long = be(16, 500)
    now_s = start_as_predicted(scheduler, long)
    num_before, num_steps, num_short = long.num_output, 200, 0
    for _ in range(num_steps):
        while len(scheduler.view.table.rows()) + len(scheduler.view.be_waiting) < 16:
            scheduler.add(be(1, 30, arrival_s=now_s), now_s)
        plan = step(scheduler, now_s)
        now_s += plan.predicted_s
        num_short += len(plan.num_new_tokens) - (long in plan.num_new_tokens)
    assert long.num_output - num_before > 0.9 * num_steps
    assert num_short > 2 * num_steps


def test_a_best_effort_decode_takes_a_free_batch_slot_where_no_prompt_may_begin() -> None:
    """At this arrival rate real-time requests fill the batch slots even at the shortest steps."""
    scheduler = make(max_seqs_per_step=8, num_blocks=2000)
    decode, waiting = be(16, 20), be(16, 20)
    now_s = start_as_predicted(scheduler, rt(16, 20), decode)
    for _ in range(2000):
        scheduler.view.traffic.rt_arrivals.note(rt(1, 100, arrival_s=now_s))
    scheduler.add(waiting, now_s)
    plan = scheduler.plan(now_s)
    assert decode in plan.num_new_tokens
    assert waiting not in plan.num_new_tokens


def test_a_batch_slot_is_kept_for_a_prompt_that_waits() -> None:
    scheduler = make(max_seqs_per_step=4, num_blocks=2000)
    now_s = start_as_predicted(scheduler, *(be(16, 50) for _ in range(4)))
    waiting = be(16, 50)
    scheduler.add(waiting, now_s)
    plan = scheduler.plan(now_s)
    assert waiting in plan.num_new_tokens
    assert len(plan.num_new_tokens) == 4


def test_no_new_request_begins_while_one_that_began_waits_for_kv_slots() -> None:
    scheduler = make(num_blocks=16, max_seq_len=256)
    first, second = be(200, 20), be(20, 5)
    start(scheduler, first)
    scheduler.add(rt(100, 20), 0.0)
    step(scheduler, 0.0)  # takes slots of the first one
    scheduler.add(second, 0.02)
    assert second not in scheduler.plan(0.02).num_new_tokens
