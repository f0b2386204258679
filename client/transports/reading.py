"""Reads what a server sends over HTTP, up to a bound: a server that is not ours may send without end.

Nothing compressed is taken, since a few bytes could stand for gigabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.errors import UnavailableError
from client.transports import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import httpx2

MAX_ERROR_BYTES = 1024 * 1024
_DATA = b"data:"
AS_IT_IS = {"Accept-Encoding": "identity"}  # header of a request whose answer is read here


class Events:
    """Cuts pieces of a body into server-sent events, each of one line of data."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of a line that has not ended
        self._num_bytes = 0  # since the last event

    def push(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that end in `piece`. Raises UnavailableError beyond the bound."""
        *ended, rest = piece.split(b"\n")
        lines = [b"".join(self._rest) + ended[0], *ended[1:]] if ended else []
        events = [line.removeprefix(_DATA) for line in lines if line.startswith(_DATA)]
        self._rest = [rest] if ended else [*self._rest, rest]
        self._num_bytes = len(rest) if events else self._num_bytes + len(piece)
        if self._num_bytes > MAX_MESSAGE_BYTES:
            raise _too_long(MAX_MESSAGE_BYTES)
        return events

    def end(self) -> list[bytes]:
        """Return the event that no line break ends."""
        return self.push(b"\n")


def require_plain(response: httpx2.Response) -> None:
    """Raise UnavailableError where a body is compressed."""
    coding = response.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("identity", ""):
        raise UnavailableError(f"no server of ours: its answer is compressed ({coding[:60]!r})")


def read_bounded(response: httpx2.Response, max_bytes: int) -> bytes:
    """Return the body of a response that was opened as a stream. Raises UnavailableError beyond the bound."""
    require_plain(response)
    body = bytearray()
    for piece in response.iter_bytes():
        _append(body, piece, max_bytes)
    return bytes(body)


async def read_bounded_async(response: httpx2.Response, max_bytes: int) -> bytes:
    """As `read_bounded`, for an event loop."""
    require_plain(response)
    body = bytearray()
    async for piece in response.aiter_bytes():
        _append(body, piece, max_bytes)
    return bytes(body)


def _append(body: bytearray, piece: bytes, max_bytes: int) -> None:
    if len(body) + len(piece) > max_bytes:
        raise _too_long(max_bytes)
    body += piece


def _too_long(max_bytes: int) -> UnavailableError:
    return UnavailableError(f"no server of ours: its answer exceeds {max_bytes} bytes")
