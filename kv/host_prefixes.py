"""Copies of evicted segments in the host pool: a new request gets them back without computing them.

    name of a segment      a digest of its salt and of all tokens up to its end
    segments               name ──► block_size host slots, in the order of their last use

A segment is copied out when the cache evicts the last row that lends it, if real-time used that row. A full part drops
the segment that was used least recently. It drops none that a copy of the current step reads, so a step may make its
copies out first and then its copies in. A digest has 256 bits: two prefixes never have the same one.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from kv.block import ceil_div
from kv.prefixes import TOKEN_BYTES, Prefix
from kv.types import NO_COPIES, SlotCopy

_Slots = NDArray[np.int32]


class HostPrefixes:
    """Segments on the host, in slots of their own: [first_slot, first_slot + num_slots)."""

    def __init__(self, first_slot: int, num_slots: int, block_size: int) -> None:
        self.block_size = block_size
        self.num_segments = num_slots // block_size
        self._slots = first_slot + np.arange(self.num_segments * block_size, dtype=np.int32).reshape(-1, block_size)
        self._free = list(range(self.num_segments))[::-1]
        self._segments: dict[bytes, int] = {}  # by name; the one used least recently first
        self._locked: set[bytes] = set()  # that copies of this step read
        self._unsaved: dict[bytes, _Slots] = {}  # device slots of those that no step has copied out yet
        self._written: list[bytes] = []  # that the copies out of this step write

    @property
    def num_used(self) -> int:
        """Host slots that hold a segment."""
        return len(self._segments) * self.block_size

    def begin_step(self) -> None:
        """Take the copies of the last step as made."""
        self._written = []
        self._locked.clear()

    def num_found(self, prefix: Prefix, start: int) -> int:
        """Return how many tokens of `prefix` from `start` on are here. The last token is always computed."""
        if not self._segments or start % self.block_size or start >= prefix.num_tokens:
            return 0
        names = self._names_of(prefix)
        index = start // self.block_size
        while index < len(names) and names[index] in self._segments:
            index += 1
        return min(index * self.block_size, prefix.num_tokens - 1) - start

    def take(self, prefix: Prefix, start: int, num_tokens: int) -> _Slots:
        """Return the host slots of `num_tokens` from `start` on, to be copied in by this step. They stay here."""
        assert 0 < num_tokens <= self.num_found(prefix, start), f"{num_tokens} tokens from {start} on are not here"
        names = self._names_of(prefix)[start // self.block_size : ceil_div(start + num_tokens, self.block_size)]
        for name in reversed(names):  # so that a segment is dropped after those that follow it
            self._use(name)
        self._locked.update(names)
        taken: _Slots = self._slots[[self._segments[name] for name in names]].ravel()[:num_tokens]
        return taken

    def save(self, names: list[bytes], device_slots: list[_Slots]) -> None:
        """Let the next copies out bring segments here, as far as there is room."""
        for name, slots in zip(reversed(names), reversed(device_slots), strict=True):
            if name not in self._segments:
                if not self._free and not self._drop_one():
                    return
                self._segments[name] = self._free.pop()
                self._unsaved[name] = slots
            self._use(name)

    def take_copies(self) -> SlotCopy:
        """Return the copies out that this step makes first."""
        if not self._unsaved:
            return NO_COPIES
        self._written, device_slots = list(self._unsaved), np.concatenate(list(self._unsaved.values()))
        self._unsaved = {}
        host_slots: _Slots = self._slots[[self._segments[name] for name in self._written]].ravel()
        return SlotCopy(device_slots, host_slots)

    def discard_copies(self) -> None:
        """Forget the segments of a failed step's copies out. Nothing was saved since `take_copies`."""
        for name in self._written:
            self._free.append(self._segments.pop(name))
            self._locked.discard(name)
        self._written = []

    def check_invariants(self) -> None:
        """Assert that each segment is free or has one name, and that no copy waits for one that is not here."""
        used = sorted([*self._free, *self._segments.values()])
        assert used == list(range(self.num_segments)), "a segment of the host is lost or has two uses"
        assert self._locked <= self._segments.keys(), "a segment that is copied was dropped"
        assert self._unsaved.keys() <= self._segments.keys(), "a segment that was dropped waits for its copy"

    def _use(self, name: bytes) -> None:
        self._segments[name] = self._segments.pop(name)

    def _drop_one(self) -> bool:
        """Drop the segment used least recently. Return False where this step reads all."""
        name = next((name for name in self._segments if name not in self._locked), None)
        if name is None:
            return False
        self._free.append(self._segments.pop(name))
        self._unsaved.pop(name, None)
        return True

    def _names_of(self, prefix: Prefix) -> list[bytes]:
        if prefix.names is None:
            prefix.names = names_of(prefix.salt, prefix.data, self.block_size)
        return prefix.names


def names_of(salt: str, tokens: bytes, block_size: int) -> list[bytes]:
    """Return the name of each whole segment of `tokens`, which begin a prompt."""
    size, names = block_size * TOKEN_BYTES, []
    name = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    for stop in range(size, len(tokens) + 1, size):
        name = hashlib.blake2b(name + tokens[stop - size : stop], digest_size=32).digest()
        names.append(name)
    return names
