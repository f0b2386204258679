"""WaitingQueue: requests that hold nothing yet, in an order that a policy chose, readable without being changed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple, TypeAlias

from backend.core.request import Request, RequestState

Key: TypeAlias = float | tuple[float, int]  # all of one queue are of one kind; the arrival index breaks ties
Order = Callable[[Request], Key]
Look = Callable[[Request], None]


class _Entry(NamedTuple):
    key: Key
    arrival_index: int
    request: Request


class WaitingQueue:
    """A binary heap with lazy deletion: a request leaves by no longer being WAITING.

    push and settle are O(log n); `in_time` and `relegated` yield their k smallest in O(k log k), without popping them.
    What `settle` finds late moves from the one to the other.
    """

    def __init__(self, order: Order, look: Look | None = None) -> None:
        """look: called with each request that is yielded, to bring its entry up to date."""
        self._order = order
        self._look = look
        self._heap: list[_Entry] = []
        self._relegated: list[_Entry] = []
        self._num_live = 0
        self.num_bytes = 0  # about what the requests that wait here take of memory

    def __len__(self) -> int:
        return self._num_live

    def push(self, request: Request) -> None:
        """Add a WAITING request that has its arrival index."""
        heapq.heappush(self._heap, _Entry(self._order(request), request.arrival_index, request))
        self._num_live += 1
        self.num_bytes += request.num_bytes

    def note_left(self, request: Request) -> None:
        """Count a request out that stopped waiting; its entry goes when it surfaces, or when dead entries prevail."""
        self._num_live -= 1
        self.num_bytes -= request.num_bytes
        if len(self._heap) + len(self._relegated) > 2 * self._num_live:
            self._heap = [entry for entry in self._heap if _is_live(entry)]
            self._relegated = [entry for entry in self._relegated if _is_live(entry)]
            heapq.heapify(self._heap)
            heapq.heapify(self._relegated)

    def settle(self, is_late: Callable[[Request], bool]) -> None:
        """Relegate the first requests while they are late, and drop dead entries from the top."""
        heap = self._heap
        while heap and (not _is_live(heap[0]) or is_late(heap[0].request)):
            entry = heapq.heappop(heap)
            if _is_live(entry):
                heapq.heappush(self._relegated, entry)
        while self._relegated and not _is_live(self._relegated[0]):
            heapq.heappop(self._relegated)

    def in_time(self) -> Iterator[Request]:
        """Yield the waiting requests that `settle` did not relegate, in order."""
        return self._seen(_walk(self._heap))

    def first(self, num: int) -> list[Request]:
        """Return the first `num` of these at most. No look brings them up to date."""
        return list(islice(_walk(self._heap), num))

    def relegated(self) -> Iterator[Request]:
        """Yield the relegated requests, in order."""
        return self._seen(_walk(self._relegated))

    def _seen(self, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            if self._look is not None:
                self._look(request)
            yield request

    def check_invariants(self) -> None:
        """Assert that the count is right and that nothing waits twice."""
        live = [entry.request for entry in self._heap + self._relegated if _is_live(entry)]
        assert len(live) == self._num_live, f"{len(live)} requests wait, {self._num_live} are counted"
        assert self.num_bytes == sum(request.num_bytes for request in live), "bytes are miscounted"
        assert len({id(request) for request in live}) == len(live), "a request waits twice"


def _is_live(entry: _Entry) -> bool:
    return entry.request.state is RequestState.WAITING


def _walk(heap: list[_Entry]) -> Iterator[Request]:
    """Yield a heap's live requests in order: the next one is always a child of one already seen."""
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        entry, index = heapq.heappop(frontier)
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))
        if _is_live(entry):
            yield entry.request
