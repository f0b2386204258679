"""The segments that entered and left the index of prefixes, in order, for a router in front of many caches.

    Stored(parent, hashes, tokens, salt)    segments after the one of hash `parent` (None: they begin a prompt)
    Removed(hashes)                         these segments only; a segment leaves after all that follow it

A hash stands for a salt, a segment and all segments before it. It is the same in every process. A router only estimates
with hashes: the engine itself compares tokens.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

_HASH_BYTES = 8  # signed, as NVIDIA Dynamo's events have them


class Stored(NamedTuple):
    """Segments that can be borrowed from now on. tokens: int32 in the machine's order, all segments' in a row."""

    parent: int | None
    hashes: list[int]
    tokens: bytes
    salt: str


class Removed(NamedTuple):
    """Segments that cannot be borrowed any more."""

    hashes: list[int]


PrefixEvent = Stored | Removed


def hashes_of(parent: int | None, salt: str, tokens: bytes, segment_bytes: int) -> list[int]:
    """Return the hash of each segment of `tokens`, which follow the segment of hash `parent`, or begin a prompt."""
    hashes = []
    before = _digest(salt.encode()) if parent is None else parent.to_bytes(_HASH_BYTES, "big", signed=True)
    for start in range(0, len(tokens), segment_bytes):
        before = _digest(before + tokens[start : start + segment_bytes])
        hashes.append(int.from_bytes(before, "big", signed=True))
    return hashes


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()


class PrefixLog:
    """The events since they were last taken."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: list[PrefixEvent] = []

    def note(self, event: PrefixEvent) -> None:
        self._events.append(event)

    def take(self) -> list[PrefixEvent]:
        """Return the events since the last call, and forget them."""
        events, self._events = self._events, []
        return events
