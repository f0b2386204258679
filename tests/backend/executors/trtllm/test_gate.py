from __future__ import annotations

from typing import Any

import pytest

from backend.core.errors import OverloadedError, RequestTooLargeError
from backend.core.request import PriorityClass, Request
from backend.executors.trtllm.gate import Gate, GateLimits
from tests.backend.factories import BE, RT, be, rt


def make_gate(**knobs: Any) -> Gate:
    defaults: dict[str, Any] = {
        "max_inside": 8,
        "reserved_rt_seqs": 3,
        "max_waiting_rt": 100,
        "max_waiting_be": 100,
        "max_seq_len": 1024,
        "block_size": 32,
        "num_blocks": 100,
    }
    return Gate(GateLimits(**{**defaults, **knobs}))


def add(gate: Gate, *requests: Request) -> None:
    for request in requests:
        request.arrival_index = len(gate.requests())
        gate.add(request)
        gate.check_invariants()


def test_a_queue_is_bounded_in_bytes_and_advises_by_its_own_rate() -> None:
    gate = make_gate(max_inside=1, reserved_rt_seqs=0, max_waiting_bytes=62_000)
    requests = [be(8) for _ in range(14)]
    add(gate, *requests)
    for index, request in enumerate(requests[:10]):  # one enters each second
        assert admit(gate, float(index)) == [request]
        gate.leave(request)
    with pytest.raises(OverloadedError, match=r"be queue: \d+ bytes are waiting") as refusal:
        gate.add(be(1000, arrival_s=9.0))
    assert refusal.value.retry_after_s == pytest.approx(4.0, rel=0.3)


def admit(gate: Gate, now_s: float = 0.0) -> list[Request]:
    admitted = gate.admit(now_s)
    gate.check_invariants()
    return admitted


def test_best_effort_leaves_the_reserved_places_free() -> None:
    gate = make_gate()
    add(gate, *(be() for _ in range(10)))
    assert len(admit(gate)) == 5
    assert (gate.num_inside(BE), gate.num_waiting(BE)) == (5, 5)


def test_real_time_takes_every_place_by_deadline_and_before_best_effort() -> None:
    gate = make_gate(max_inside=2)
    late, early, middle = (rt(ttft_slo_s=slo_s) for slo_s in (3.0, 1.0, 2.0))
    add(gate, be(), late, early, middle)
    assert admit(gate) == [early, middle]
    gate.leave(early)
    assert admit(gate) == [late]


def test_overdue_real_time_enters_after_those_in_time() -> None:
    gate = make_gate(max_inside=1)
    overdue, in_time = rt(ttft_slo_s=1.0), rt(ttft_slo_s=9.0)
    add(gate, overdue, in_time)
    assert admit(gate, now_s=2.0) == [in_time]


def test_overdue_real_time_is_refused_where_that_is_wanted() -> None:
    gate = make_gate(refuse_late_rt=True)
    overdue, in_time = rt(ttft_slo_s=1.0), rt(ttft_slo_s=9.0)
    add(gate, overdue, in_time)
    assert gate.next_refusal_s() == 1.0
    assert gate.refuse(now_s=2.0) == [overdue]
    assert admit(gate, now_s=2.0) == [in_time]
    assert gate.next_refusal_s() is None


def test_nobody_is_refused_where_late_ones_are_served() -> None:
    gate = make_gate()
    add(gate, rt(ttft_slo_s=1.0))
    assert gate.refuse(now_s=2.0) == []
    assert gate.next_refusal_s() is None


def test_best_effort_stays_below_its_share_of_blocks_in_the_worst_case() -> None:
    gate = make_gate(max_be_blocks=5)
    requests = [be(num_prompt=32, max_tokens=32) for _ in range(3)]
    add(gate, *requests)
    assert admit(gate) == requests[:2]
    gate.leave(requests[0])
    assert admit(gate) == requests[2:]
    assert gate.num_be_blocks == 4


def test_a_best_effort_request_above_the_share_runs_alone() -> None:
    gate = make_gate(max_be_blocks=1)
    large, small = be(num_prompt=512, max_tokens=100), be(num_prompt=10, max_tokens=10)
    add(gate, large, small)
    assert admit(gate) == [large]
    gate.leave(large)
    assert admit(gate) == [small]


def test_the_pools_true_size_is_taken_in_while_requests_are_inside() -> None:
    gate = make_gate(max_be_blocks=0)
    add(gate, be(num_prompt=64, max_tokens=64), be(num_prompt=64, max_tokens=64))
    assert len(admit(gate)) == 1
    gate.set_pool(num_blocks=50, block_size=64, max_be_blocks=10)
    assert gate.num_be_blocks == 2
    assert len(admit(gate)) == 1


def test_a_request_withdrawn_while_it_waits_never_enters() -> None:
    gate = make_gate()
    request = be()
    add(gate, request)
    assert gate.withdraw(request.request_id) is request
    assert gate.withdraw(request.request_id) is None
    assert admit(gate) == []


def test_a_request_inside_cannot_be_withdrawn() -> None:
    gate = make_gate()
    request = rt()
    add(gate, request)
    admit(gate)
    assert gate.withdraw(request.request_id) is None


@pytest.mark.parametrize("priority_class", [RT, BE])
def test_a_full_queue_refuses_with_the_time_to_retry(priority_class: PriorityClass) -> None:
    gate = make_gate(max_waiting_rt=1, max_waiting_be=1)
    make = rt if priority_class is RT else be
    add(gate, make())
    with pytest.raises(OverloadedError, match=r"1 requests are waiting.*retry_after_ms"):
        gate.add(make())


def test_what_never_fits_is_refused_at_once() -> None:
    with pytest.raises(RequestTooLargeError, match="1024"):
        make_gate().add(be(num_prompt=1000, max_tokens=25))
    with pytest.raises(RequestTooLargeError, match="320"):
        make_gate(num_blocks=10).add(be(num_prompt=300, max_tokens=22))
