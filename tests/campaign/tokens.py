"""The tokens that the simulated executor must have made: what belongs to another, or came in another order, is found.

A token is a function of the engine's name of the request, `<client id>#<connection>.<handle>`, and its position. Only
the client's part is known here. The rest is searched for, once per answer, among all there can be. That tells requests
apart when the vocabulary is large: a sequence depends on its name's checksum modulo 128 times the vocabulary. CRC-32 is
linear, so the checksum of a whole name is that of its last part, XORed with a word that depends on the first part and
the length of the last.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from backend.executors.sim import SimSettings, token_at

MAX_CONNECTIONS = 24  # of one engine: a launcher, three stubs, and stubs that took the place of dead ones
MAX_HANDLES = 40_000  # requests of one stub
_MULTIPLIER, _STRIDE, _SHIFT = 0x85EBCA6B, 0xC2B2AE35, 7  # of `token_at`
_NUM_TELLING = 6  # tokens that leave one name of a million


def find_name(settings: SimSettings, client_id: str, num_prompt: int, token_ids: Sequence[int]) -> str | None:
    """Return the engine's name of the request whose output begins with `token_ids`; None where there is none.

    Only seed 0 is understood. Where several names fit, it is one of them.
    """
    assert settings.seed == 0, "the search knows no other seed"
    start = zlib.crc32(f"{client_id}#".encode())
    for length, (names, checksums) in _last_parts().items():
        found = checksums ^ np.uint64(_shift(start, length))
        indexes = np.arange(len(found))
        for offset, token_id in enumerate(token_ids[:_NUM_TELLING]):
            is_match = _tokens_at(settings, found, num_prompt + offset) == token_id
            found, indexes = found[is_match], indexes[is_match]
        for index in indexes.tolist():
            name = f"{client_id}#{names[index]}"
            if all(token_at(settings, name, num_prompt + at) == token_id for at, token_id in enumerate(token_ids)):
                return name
    return None


def _tokens_at(settings: SimSettings, checksums: NDArray[np.uint64], position: int) -> NDArray[np.uint64]:
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
def _last_parts() -> dict[int, tuple[list[str], NDArray[np.uint64]]]:
    """Return all ends of names with their checksums, by length."""
    by_length: dict[int, list[str]] = {}
    for connection in range(1, MAX_CONNECTIONS + 1):
        for handle in range(MAX_HANDLES):
            by_length.setdefault(len(name := f"{connection}.{handle}"), []).append(name)
    return {
        length: (names, np.array([zlib.crc32(name.encode()) for name in names], np.uint64))
        for length, names in by_length.items()
    }
