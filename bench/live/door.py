"""A lean client of the front door, for a measurement that shares its cores: bytes are looked at, not parsed.

Each request has a connection of its own and is answered by server-sent events. The first piece with text is known by a
mark; how many tokens came is in the usage, once, at the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

_USAGE = re.compile(rb'"completion_tokens":(\d+)')
_MARKS = {"/v1/completions": b'"text":"', "/v1/chat/completions": b'"delta":{"content":"'}
_TAIL_BYTES = 512  # of what came before, where a mark may be cut in two

Note = Callable[[int, bool], None]  # number of new tokens, whether that was all
Post = Callable[[Mapping[str, Any], Note], None]


class DoorError(Exception):
    """The front door answered with something other than a stream."""


@contextmanager
def door_client(openai_url: str, path: str = "/v1/completions") -> Iterator[Post]:
    """Run an event loop in a thread; yield how to post a body, whose stream is told to a callback in that thread."""
    parts = urlsplit(openai_url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def post(body: Mapping[str, Any], note: Note) -> None:
        asked = json.dumps(dict(body) | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        lines = (
            f"POST {path} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/json",
            f"Content-Length: {len(asked)}",
            "Connection: close",
        )
        request = "\r\n".join((*lines, "", "")).encode() + asked
        opened = loop.create_connection(lambda: _Reading(request, _MARKS[path], note), host, port)
        asyncio.run_coroutine_threadsafe(opened, loop)

    try:
        yield post
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Reading(asyncio.Protocol):
    """Reads one stream; the first piece of text counts as no token, and the usage as all of them."""

    def __init__(self, request: bytes, mark: bytes, note: Note) -> None:
        self._request = request
        self._mark = mark
        self._note = note
        self._tail = b""
        self._has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        if not self._has_begun and self._mark in seen:
            self._has_begun = True
            self._note(0, False)
        self._tail = seen[-_TAIL_BYTES:]

    def connection_lost(self, _: Exception | None) -> None:
        found = _USAGE.search(self._tail)
        if found is None or b"data: [DONE]" not in self._tail:
            raise DoorError(f"no end of a stream: {self._tail[-300:]!r}")
        self._note(int(found[1]), True)
