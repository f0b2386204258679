"""Reads JSON objects that strangers wrote: what would take long to read is refused before it is read.

The bounds are on counts. A text, or a list of token ids, is read at 100 MB/s; a million small objects take seconds.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from client.openai.errors import ApiError

MAX_NESTED = 20_000  # lists and objects; 4,096 messages of one part each are 12,289
MAX_MEMBERS = 60_000  # fields of all objects together
_UNCOUNTED_BYTES = 16 * 1024  # as many bytes hold too few of them to take long
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_QUOTE, _COLON, _LIST, _OBJECT = b'":[{'


def read_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that `text` is. Raises ApiError."""
    require_few(text)
    try:
        value = msgspec.json.decode(text)
    except _UNREADABLE as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError("the body is not a JSON object")
    return value


def require_few(text: bytes, what: str = "the body", param: str | None = None) -> None:
    """Raise ApiError where JSON holds more values than a request needs. Takes 10 ms a MiB, whatever it holds."""
    if len(text) <= _UNCOUNTED_BYTES:
        return
    signs = _outside_of_strings(text)
    num_nested = int(np.count_nonzero((signs == _LIST) | (signs == _OBJECT)))
    num_members = int(np.count_nonzero(signs == _COLON))
    for found, limit, kind in ((num_nested, MAX_NESTED, "lists and objects"), (num_members, MAX_MEMBERS, "fields")):
        if found > limit:
            raise ApiError(f"{what} holds {found} {kind}; the most are {limit}", param)


def require_short(name: str, value: object, max_bytes: int) -> None:
    """Raise ApiError where a field takes more bytes than `max_bytes` as JSON."""
    if (size := len(msgspec.json.encode(value))) > max_bytes:
        raise ApiError(f"{name}: {size} bytes of JSON exceed {max_bytes}", param=name)


def is_text(words: str) -> bool:
    """Return whether no lone surrogate, which JSON can escape, stands in `words`."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def _outside_of_strings(text: bytes) -> npt.NDArray[np.uint8]:
    """Return the bytes that stand in no string. Right up to where `text` ceases to be JSON, which nobody reads past."""
    signs = np.frombuffer(text.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    is_inside: npt.NDArray[np.bool_] = np.logical_xor.accumulate(signs == _QUOTE)
    return signs[~is_inside]
