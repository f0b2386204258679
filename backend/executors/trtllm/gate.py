"""The gate in front of TensorRT-LLM: which requests may enter its active list, and which wait here.

A request inside keeps one of TensorRT-LLM's active slots until it ends, paused or not. A full list keeps real-time
requests out, whatever their priority. So best-effort requests enter only while `reserved_rt_seqs` slots stay free.

In outer mode nothing inside takes KV blocks back from best-effort requests. There they also enter only while their
worst case stays below a share of the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, takewhile

from backend.core.errors import OverloadedError, RequestTooLargeError
from backend.core.request import PriorityClass, Request, RequestId, RequestState, first_deadline_s
from backend.engine.admission import retry_after_s
from backend.engine.drain import Drain
from backend.policy.state.waiting_queue import WaitingQueue


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The size of TensorRT-LLM's active list and KV pool, and how much of them each class may take.

    max_inside        active slots of TensorRT-LLM
    num_blocks        KV blocks of the whole pool
    max_be_blocks     bound on the worst-case KV blocks of best-effort requests inside; None is no bound
    refuse_late_rt    refuse a real-time request that waits here past its first token's deadline, else serve it late
    """

    max_inside: int
    reserved_rt_seqs: int
    max_waiting_rt: int
    max_waiting_be: int
    max_seq_len: int
    block_size: int
    num_blocks: int
    max_be_blocks: int | None = None
    refuse_late_rt: bool = False
    max_waiting_bytes: int = 1_000_000_000

    @property
    def max_tokens(self) -> int:
        """The longest request that can ever be served."""
        return min(self.max_seq_len, self.num_blocks * self.block_size)

    def worst_case_blocks(self, request: Request) -> int:
        """Blocks that `request` holds at its longest."""
        return -(-request.max_total_tokens // self.block_size)


class Gate:
    """Waiting requests by class, and those inside. The engine's thread owns it. Of a request it sets only `state`."""

    def __init__(self, limits: GateLimits) -> None:
        self.limits = limits
        self._queues = {
            PriorityClass.REAL_TIME: WaitingQueue(first_deadline_s),
            PriorityClass.BEST_EFFORT: WaitingQueue(lambda request: request.arrival_index),
        }
        self._drains = {priority_class: Drain() for priority_class in PriorityClass}
        self._requests: dict[RequestId, Request] = {}  # waiting or inside
        self._num_inside = dict.fromkeys(PriorityClass, 0)
        self._be_blocks = 0

    def add(self, request: Request) -> None:
        """Add a request to its class's queue. Raises RequestTooLargeError or OverloadedError, with nothing changed."""
        limits = self.limits
        if request.max_total_tokens > limits.max_tokens:
            raise RequestTooLargeError(
                f"request {request.request_id!r}: prompt of {request.num_prompt} and output of "
                f"{request.sampling.max_tokens} tokens exceed {limits.max_tokens}"
            )
        max_waiting = limits.max_waiting_rt if request.is_rt else limits.max_waiting_be
        queue = self._queues[request.priority_class]
        is_full = len(queue) > 0 and queue.num_bytes + request.num_bytes > limits.max_waiting_bytes
        if is_full or len(queue) >= max_waiting:
            words = f"{queue.num_bytes} bytes" if is_full else f"{max_waiting} requests"
            per_s = self._drains[request.priority_class].per_s(request.arrival_s) or limits.max_inside
            raise OverloadedError(
                f"{request.priority_class.value} queue: {words} are waiting", retry_after_s(len(queue), per_s)
            )
        queue.push(request)
        self._requests[request.request_id] = request

    def admit(self, now_s: float) -> list[Request]:
        """Return the requests that enter TensorRT-LLM now: real-time by deadline, overdue real-time, best-effort."""
        self._queues[PriorityClass.REAL_TIME].settle(lambda request: first_deadline_s(request) < now_s)
        return self._enter_while(PriorityClass.REAL_TIME, self._has_batch_slot, now_s) + self._enter_while(
            PriorityClass.BEST_EFFORT, self._has_room_for_be, now_s
        )

    def refuse(self, now_s: float) -> list[Request]:
        """Remove the overdue real-time requests and return them. Empty unless `refuse_late_rt`."""
        if not self.limits.refuse_late_rt:
            return []
        queue = self._queues[PriorityClass.REAL_TIME]
        late = list(takewhile(lambda request: first_deadline_s(request) < now_s, queue.in_time()))
        for request in late:
            self.withdraw(request.request_id)
        return late

    def set_pool(self, num_blocks: int, block_size: int, max_be_blocks: int) -> None:
        """Set the pool's true size. Requests may be inside already."""
        self.limits = replace(self.limits, num_blocks=num_blocks, block_size=block_size, max_be_blocks=max_be_blocks)
        inside = (request for request in self._requests.values() if request.state is not RequestState.WAITING)
        self._be_blocks = sum(self.limits.worst_case_blocks(request) for request in inside if not request.is_rt)

    def next_refusal_s(self) -> float | None:
        """Return when the next waiting request must be refused, or None."""
        if not self.limits.refuse_late_rt:
            return None
        first = next(self._queues[PriorityClass.REAL_TIME].in_time(), None)
        return None if first is None else first_deadline_s(first)

    def withdraw(self, request_id: RequestId) -> Request | None:
        """Remove a waiting request and return it. Return None when it is inside or unknown."""
        request = self._requests.get(request_id)
        if request is None or request.state is not RequestState.WAITING:
            return None
        request.state = RequestState.FINISHED
        del self._requests[request_id]
        self._queues[request.priority_class].note_left(request)
        return request

    def leave(self, request: Request) -> None:
        """Record that TensorRT-LLM has released `request`: its active slot is free."""
        del self._requests[request.request_id]
        self._num_inside[request.priority_class] -= 1
        if not request.is_rt:
            self._be_blocks -= self.limits.worst_case_blocks(request)

    def requests(self) -> list[Request]:
        """Return all requests, waiting and inside, in order of arrival."""
        return list(self._requests.values())

    def num_waiting(self, priority_class: PriorityClass) -> int:
        return len(self._queues[priority_class])

    def num_inside(self, priority_class: PriorityClass) -> int:
        return self._num_inside[priority_class]

    @property
    def num_be_blocks(self) -> int:
        """Worst-case KV blocks of the best-effort requests inside."""
        return self._be_blocks

    def check_invariants(self) -> None:
        """Assert the invariants between two calls."""
        inside = [request for request in self._requests.values() if request.state is not RequestState.WAITING]
        assert len(inside) == sum(self._num_inside.values()) <= self.limits.max_inside
        assert len(self._requests) - len(inside) == sum(map(len, self._queues.values()))
        be_blocks = sum(self.limits.worst_case_blocks(request) for request in inside if not request.is_rt)
        assert self._be_blocks == be_blocks
        for queue in self._queues.values():
            queue.check_invariants()

    def _enter_while(
        self, priority_class: PriorityClass, has_room: Callable[[Request], bool], now_s: float
    ) -> list[Request]:
        queue = self._queues[priority_class]
        admitted = []
        for request in chain(queue.in_time(), queue.relegated()):
            if not has_room(request):
                break
            request.state = RequestState.RUNNING
            self._num_inside[priority_class] += 1
            if not request.is_rt:
                self._be_blocks += self.limits.worst_case_blocks(request)
            admitted.append(request)
        for request in admitted:
            queue.note_left(request)
            self._drains[priority_class].note(now_s)
        return admitted

    def _has_batch_slot(self, _: Request) -> bool:
        return sum(self._num_inside.values()) < self.limits.max_inside

    def _has_room_for_be(self, request: Request) -> bool:
        limits = self.limits
        if sum(self._num_inside.values()) >= limits.max_inside - limits.reserved_rt_seqs:
            return False
        if limits.max_be_blocks is None or self._be_blocks == 0:  # the only one may always enter, so that it can finish
            return True
        return self._be_blocks + limits.worst_case_blocks(request) <= limits.max_be_blocks
