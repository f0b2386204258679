"""Tells a router which prefixes the cache of one engine holds, in the words of Dynamo's `KvEventPublisher`.

The publisher has no word for "all is gone": who announced remembers it, and takes it back block by block. The router
looks for a request among the blocks of its salt only, as the engine does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from backend.wire.protocol import Prefixes, Removed, Stored

logger = logging.getLogger(__name__)

_MAX_BLOCKS = 1024  # of one event that takes blocks back


class Publisher(Protocol):
    """The part of Dynamo's `KvEventPublisher` that is used."""

    def publish_batch(self, events: Sequence[dict[str, Any]]) -> None: ...


class Announcer:
    """Called on the link's thread. `ask_again` asks the engine for everything, where a message is missing."""

    def __init__(self, publisher: Publisher, block_size: int, ask_again: Callable[[], None]) -> None:
        self._publisher = publisher
        self._block_size = block_size
        self._ask_again = ask_again
        self._announced: dict[int, None] = {}  # hashes; what a block follows stands before it
        self._next_number: int | None = None  # None: the next message is to be number 0

    def take(self, message: Prefixes | None) -> None:
        """Pass on what came and went; None: the engine is gone, and with it all that it held."""
        if message is None:
            self._take_back_all()
        elif message.number == 0:
            self._take_back_all()
            self._pass_on(message)
        elif message.number == self._next_number:
            self._pass_on(message)
        elif self._next_number is not None:
            logger.warning("message %d of the prefix cache instead of %d", message.number, self._next_number)
            self._take_back_all()
            self._ask_again()

    def _pass_on(self, message: Prefixes) -> None:
        self._next_number = message.number + 1
        for event in message.events:
            self._note(event)
        if message.events:
            self._publisher.publish_batch([self._in_words(event) for event in message.events])

    def _note(self, event: Stored | Removed) -> None:
        if isinstance(event, Stored):
            self._announced |= dict.fromkeys(event.hashes)
        else:
            for block in event.hashes:
                self._announced.pop(block, None)

    def _take_back_all(self) -> None:
        self._next_number = None
        blocks = list(reversed(self._announced))
        self._announced.clear()
        if blocks:
            self._publisher.publish_batch(
                [_removed(blocks[i : i + _MAX_BLOCKS]) for i in range(0, len(blocks), _MAX_BLOCKS)]
            )

    def _in_words(self, event: Stored | Removed) -> dict[str, Any]:
        if isinstance(event, Removed):
            return _removed(reversed(event.hashes))
        return {
            "type": "stored",
            "token_ids": np.frombuffer(event.tokens, np.int32).tolist(),
            "num_block_tokens": [self._block_size] * len(event.hashes),
            "block_hashes": event.hashes,
            "parent_hash": event.parent,
            "cache_salt": event.salt or None,
        }


def _removed(blocks: Iterable[int]) -> dict[str, Any]:
    return {"type": "removed", "block_hashes": list(blocks)}
