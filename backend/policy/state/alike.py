"""Waiting requests that begin alike: those whose prefix is cached go first, within a bound.

    arrival   0  1  2  3  4  5  6  7        letters: what a prompt begins with; only the beginning A is cached
              B  A  C  A  B  A  C  A
    turn      4  0  6  1  5  2  7  3        A's overtake; then B's begin, so that B is cached, and so on

A request is overtaken only by those among the next `band` arrivals.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice

from backend.core.request import Request, RequestState
from backend.policy.state.waiting_queue import Look
from kv.prefixes import TOKEN_BYTES

NUM_ALIKE = 256  # tokens that the requests of a group share, and the gain that is worth an overtaking
BAND = 1_024  # arrivals
_MAX_GROUPS = 32  # that a step chooses from: those of which a request began last

_Key = tuple[str, bytes]  # a cache salt and tokens


class Alike:
    """Groups of waiting requests: the first `num_alike` tokens of a group are equal.

    The scheduler reports who comes and leaves; a policy asks `in_turn`.
    """

    def __init__(self, look: Look | None = None, num_alike: int = NUM_ALIKE, band: int = BAND) -> None:
        """look: brings `num_computed` of a waiting request up to date."""
        self._look = look
        self.set_bounds(num_alike, band)
        self._groups: dict[_Key, dict[Request, None]] = {}  # each in order of arrival
        self._several: dict[_Key, None] = {}  # groups in which several waited at once, the last to be left last

    def set_bounds(self, num_alike: int, band: int) -> None:
        """Change both bounds while nobody waits."""
        self._num_alike, self._band = num_alike, band

    def enter(self, request: Request) -> None:
        """Note that `request` waits. One with no long prefix is in no group."""
        key = self._key_of(request)
        if key is None:
            return
        group = self._groups.setdefault(key, {})
        group[request] = None
        if len(group) == 2:
            self._several[key] = None

    def leave(self, request: Request) -> None:
        """Note that `request` waits no more."""
        key = self._key_of(request)
        if key is None or request not in self._groups.get(key, ()):
            return
        group = self._groups[key]
        del group[request]
        was_asked = key in self._several
        self._several.pop(key, None)
        if not group:
            del self._groups[key]
        elif was_asked:
            self._several[key] = None

    def in_turn(self, waiting: Iterator[Request], taken: Container[Request]) -> Iterator[Request]:
        """Yield `waiting`, requests in order of arrival, as they should begin. Whoever takes one adds it to `taken`."""
        for head in waiting:
            while head not in taken:
                yield self._first(head, taken) if self._several else head

    def check_invariants(self, num_waiting: int) -> None:
        """Assert that each waiting request is in its group once, and that nobody else is in one."""
        for key, group in self._groups.items():
            assert group, "a group of nobody is kept"
            for request in group:
                assert request.state is RequestState.WAITING, f"request {request.request_id!r} does not wait"
                assert self._key_of(request) == key, f"request {request.request_id!r} is in another's group"
            assert len(group) < 2 or key in self._several, "a group is not asked"
        assert self._several.keys() <= self._groups.keys(), "a group that is gone is asked"
        assert sum(map(len, self._groups.values())) <= num_waiting, "more are in groups than wait"

    def _first(self, head: Request, taken: Container[Request]) -> Request:
        """Return who begins while `head` is the oldest: the most cached in its band."""
        best = head
        for key in islice(reversed(self._several), _MAX_GROUPS):
            request = next((request for request in self._groups[key] if request not in taken), head)
            if request is head or request.arrival_index > head.arrival_index + self._band:
                continue
            if self._look is not None:
                self._look(request)
            if request.num_computed >= best.num_computed + self._num_alike:
                best = request
        return best

    def _key_of(self, request: Request) -> _Key | None:
        prefix = request.prefix
        if prefix is None or prefix.num_tokens <= self._num_alike:
            return None
        return prefix.salt, prefix.data[: self._num_alike * TOKEN_BYTES]
