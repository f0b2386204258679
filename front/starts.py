"""Begins the requests of a server one by one, so that a burst of new ones does not hold up the answers that go out.

The event loop runs all that is ready before it looks at its sockets again, and a token passes it several times. With
2,500 new requests at once a stream stood still for seconds. `Turns` says which one is next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import ClassVar
from weakref import WeakKeyDictionary

from front.turns import Sender, Turn, Turns


class Starts:
    """The requests that have come and are not begun. The connections bound their number, so none is refused."""

    _all: ClassVar[WeakKeyDictionary[object, Starts]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._turns = Turns(max_waiting=None, max_per_client=None)
        self._numbers = count()
        self._is_busy = False  # this turn of the event loop has begun a request

    @classmethod
    def of(cls, server: object, loop: asyncio.AbstractEventLoop) -> Starts:
        """Return those of a server, whose event loop is `loop`."""
        if server not in cls._all:
            cls._all[server] = cls(loop)
        return cls._all[server]

    def add(self, sender: Sender, begin: Callable[[], None]) -> None:
        """Call `begin` now, or in a later turn of the event loop where this one has begun a request."""
        self._turns.add(Turn(not sender.is_rt, 0, next(self._numbers), sender.client, begin, _never))
        if not self._is_busy:
            self._begin_next()

    def _begin_next(self) -> None:
        turn = self._turns.pop()
        self._is_busy = turn is not None
        if turn is not None:
            self._loop.call_soon(self._begin_next)
            turn.begin()


def _never(words: str) -> None:
    raise AssertionError(f"a queue without bounds refused a request: {words}")
