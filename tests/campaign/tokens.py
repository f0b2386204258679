"""The tokens that the simulated executor must have made: a token of another request, or in another order, is found.

A token is a function of the engine's name of the request, `<client id>#<connection>.<handle>`, and its position. Only
the client's part is known here. The rest is searched for, once per answer, among all there can be. That tells requests
apart when the vocabulary is large: a sequence depends on its name's checksum modulo 128 times the vocabulary. CRC-32 is
linear. So the checksum of a whole name is that of its last part, XORed with one word. That word depends on the first
part and on the length of the last.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from backend.executors.sim import SimSettings, token_at

MAX_CONNECTIONS = 250  # of one engine: a launcher, stubs, and stubs that connected again
MAX_HANDLES = 100_000  # requests of one stub: more than the soak sends
_MULTIPLIER, _STRIDE, _SHIFT = 0x85EBCA6B, 0xC2B2AE35, 7  # of `token_at`
_NUM_TELLING = 6  # tokens that leave one name of millions


class NameSearch:
    """Finds the engine's names of requests, first on connections that had some. It knows seed 0 only."""

    def __init__(self, settings: SimSettings) -> None:
        assert settings.seed == 0, "the search knows no other seed"
        self._settings = settings
        self._connections = list(range(1, MAX_CONNECTIONS + 1))

    def find(self, client_id: str, num_prompt: int, token_ids: Sequence[int]) -> str | None:
        """Return the name of the request whose output begins with `token_ids`; None where there is none.

        Where several names fit, it is one of them.
        """
        for connection in self._connections:
            if (name := self._find_on(f"{client_id}#{connection}.", num_prompt, token_ids)) is not None:
                self._connections.remove(connection)
                self._connections.insert(0, connection)
                return name
        return None

    def _find_on(self, first_part: str, num_prompt: int, token_ids: Sequence[int]) -> str | None:
        start = zlib.crc32(first_part.encode())
        for length, (handles, checksums) in _handles().items():
            found, left = checksums ^ np.uint64(_shift(start, length)), handles
            for position, token_id in enumerate(token_ids[:_NUM_TELLING], num_prompt):
                is_match = tokens_at(self._settings, found, position) == token_id
                found, left = found[is_match], left[is_match]
            for handle in left.tolist():
                if self._fits(name := f"{first_part}{handle}", num_prompt, token_ids):
                    return name
        return None

    def _fits(self, name: str, num_prompt: int, token_ids: Sequence[int]) -> bool:
        made = (token_at(self._settings, name, num_prompt + index) for index in range(len(token_ids)))
        return all(token_id == expected for token_id, expected in zip(token_ids, made, strict=True))


def tokens_at(settings: SimSettings, checksums: NDArray[np.uint64], position: int) -> NDArray[np.uint64]:
    """Return `token_at` of all checksums: 65 bits, so the carry is added after the shift."""
    product = checksums * np.uint64(_MULTIPLIER)
    mixed = product + np.uint64(position * _STRIDE)
    carry = (mixed < product).astype(np.uint64) << np.uint64(64 - _SHIFT)
    token_ids = ((mixed >> np.uint64(_SHIFT)) + carry) % np.uint64(settings.vocab_size - 1)
    return token_ids + (token_ids >= np.uint64(settings.eos_token_id)).astype(np.uint64)


def _shift(checksum: int, num_bytes: int) -> int:
    """Return what `checksum` adds to that of `num_bytes` more bytes."""
    return zlib.crc32(bytes(num_bytes), checksum) ^ zlib.crc32(bytes(num_bytes))


@cache
def _handles() -> dict[int, tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Return all handles with the checksums of their digits, by the number of these."""
    by_length: dict[int, list[int]] = {}
    for handle in range(MAX_HANDLES):
        by_length.setdefault(len(str(handle)), []).append(handle)
    return {
        length: (np.array(handles), np.array([zlib.crc32(b"%d" % handle) for handle in handles], np.uint64))
        for length, handles in by_length.items()
    }
