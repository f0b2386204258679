"""The waiting queue against a sorted list."""

from __future__ import annotations

from itertools import count, islice

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backend.core.request import Request, RequestState, first_deadline_s
from backend.policy.state.waiting_queue import WaitingQueue
from tests.backend.factories import rt


class QueueMachine(RuleBasedStateMachine):
    """Pushes, departures and settling, beside a list that is sorted anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue(first_deadline_s)
        self.in_time: list[Request] = []
        self.relegated: list[Request] = []
        self.arrivals = count()
        self.now_s = 0.0

    @rule(ttft_slo_s=st.sampled_from([0.1, 0.2, 0.2, 0.5, 3.0]))
    def push(self, ttft_slo_s: float) -> None:
        request = rt(arrival_s=self.now_s, ttft_slo_s=ttft_slo_s)
        request.arrival_index = next(self.arrivals)
        self.queue.push(request)
        self.in_time.append(request)

    @precondition(lambda self: self.in_time or self.relegated)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.in_time + self.relegated))
        request.state = RequestState.RUNNING
        self.queue.note_left(request)
        for requests in (self.in_time, self.relegated):
            if request in requests:
                requests.remove(request)

    @rule(elapsed_s=st.sampled_from([0.05, 0.3]))
    def settle(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s
        self.queue.settle(lambda request: first_deadline_s(request) < self.now_s)
        late = [request for request in self.in_time if first_deadline_s(request) < self.now_s]
        self.relegated += late
        self.in_time = [request for request in self.in_time if request not in late]

    @invariant()
    def is_in_order(self) -> None:
        self.queue.check_invariants()
        assert len(self.queue) == len(self.in_time) + len(self.relegated)
        assert list(self.queue.in_time()) == sorted(self.in_time, key=_key)
        assert list(islice(self.queue.relegated(), 3)) == sorted(self.relegated, key=_key)[:3]


def _key(request: Request) -> tuple[float, int]:
    return (first_deadline_s(request), request.arrival_index)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_reading_the_first_of_many_looks_at_few() -> None:
    looked_at = 0

    class Watched(float):
        def __lt__(self, other: float) -> bool:
            nonlocal looked_at
            looked_at += 1
            return float(self) < float(other)

    queue = WaitingQueue(lambda request: Watched(request.arrival_index * 7919 % 10_007))
    for index in range(10_000):
        request = rt()
        request.arrival_index = index
        queue.push(request)
    looked_at = 0
    assert len(list(islice(queue.in_time(), 10))) == 10
    assert looked_at < 500


def test_departed_requests_do_not_pile_up() -> None:
    queue = WaitingQueue(lambda request: request.arrival_index)
    for index in range(10_000):
        request = rt()
        request.arrival_index = index
        queue.push(request)
        request.state = RequestState.FINISHED
        queue.note_left(request)
    assert len(queue._heap) < 200
