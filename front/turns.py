"""Whose long body is read next, and which one is refused. Pure decisions; nothing here waits.

    real-time before best-effort, but after three real-time bodies one best-effort body
    clients in turn: who was served last waits for the others
    of one client: the shortest first

A queue that is full refuses its worst body, not its newest: the longest best-effort one of whoever has most.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_WAITING = 128  # bodies, each of which stands in memory
MAX_PER_CLIENT = 32
NO_PLACE = f"{MAX_PER_CLIENT} shorter bodies of this client wait to be read, the most at once"
_RT_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends a body, and whether it seems to be real-time; nobody has read it yet."""

    client: str
    is_rt: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """A body that waits. The order is that of one client's bodies."""

    is_be: bool
    num_bytes: int
    number: int  # of its arrival
    client: str = field(compare=False)
    begin: Callable[[], None] = field(compare=False)
    refuse: Callable[[str], None] = field(compare=False)


class Turns:
    """The bodies that wait, by client; the client whose turn is next comes first. A bound that is None binds nobody."""

    def __init__(self, max_waiting: int | None = MAX_WAITING, max_per_client: int | None = MAX_PER_CLIENT) -> None:
        self._max_waiting = math.inf if max_waiting is None else max_waiting
        self._max_per_client = math.inf if max_per_client is None else max_per_client
        self._waiting: dict[str, list[Turn]] = {}
        self._num_rt_in_row = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def has_place(self, client: str, num_bytes: int) -> bool:
        """Return whether a body that has not come would be taken in now, for all that its length says."""
        own = self._waiting.get(client, [])
        return len(own) < self._max_per_client or num_bytes < own[-1].num_bytes

    def add(self, turn: Turn) -> None:
        """Let a body wait, and refuse the worst where there are too many."""
        own = self._waiting.setdefault(turn.client, [])
        insort(own, turn)
        if len(own) > self._max_per_client:
            own.pop().refuse(NO_PLACE)
        elif len(self) > self._max_waiting:
            most = max(self._waiting.values(), key=len)
            most.pop().refuse(f"{self._max_waiting} bodies wait to be read, the most at once")
        self._forget_absent()

    def drop(self, turn: Turn) -> None:
        """Forget a body; one that does not wait is none."""
        own = self._waiting.get(turn.client, [])
        if turn in own:
            own.remove(turn)
        self._forget_absent()

    def pop(self) -> Turn | None:
        """Return the body to read next, None where none waits."""
        rt = next((own[0] for own in self._waiting.values() if not own[0].is_be), None)
        be = next((turn for own in self._waiting.values() for turn in own if turn.is_be), None)
        turn = (be or rt) if self._num_rt_in_row >= _RT_IN_A_ROW else (rt or be)
        if turn is not None:
            self._num_rt_in_row = 0 if turn.is_be else self._num_rt_in_row + 1
            own = self._waiting.pop(turn.client)
            self._waiting[turn.client] = own
            self.drop(turn)
        return turn

    def _forget_absent(self) -> None:
        for client in [client for client, own in self._waiting.items() if not own]:
            del self._waiting[client]
