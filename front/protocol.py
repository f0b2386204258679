"""HTTP on one connection, with bounds on what comes before a key is asked for.

uvicorn's protocol reads a head of any length, and waits for its end as long as it takes. It also drops the body of a
request that offers an upgrade, and sends chunks to clients of HTTP/1.0.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from starlette.datastructures import Headers
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from client.generation import PriorityClass
from client.openai.errors import ApiError, retry_after
from client.openai.tiers import Rule
from front.crowd import Crowd
from front.headers import class_of
from front.http import error_response
from front.starts import Starts
from front.turns import Sender

MAX_HEAD_BYTES = 64 * 1024  # of a request: its URL and its headers; of anything else that says nothing yet
MAX_URL_BYTES = 2048  # Its query is read on the event loop: 60 kB of parameters took 80 ms of it.
MAX_HEADERS = 100
MAX_CONNECTIONS = 4096
MAX_PIPELINED = 16  # requests that wait on one connection for the answer to the one before
MAX_TINY_CHUNKS = 512  # of a body. Each takes 2 to 4 us of the event loop (two EPYC cores).
MIN_CHUNK_BYTES = 256  # Of the chunks beyond those, on average.
MAX_UNREAD_S = 30.0  # that a stream of events waits for its client in all: Triton keeps its tokens meanwhile
MAX_UNREAD_WHOLE_S = 120.0  # that a whole answer, which lies in memory, waits for its client
HEAD_TIMEOUT_S = 10.0  # from the connection, or from the first byte after an answer, to the end of the headers
_OTHER_DESCRIPTORS = 320  # of this process: files of batches, uploads, downloads, the engine
_WITHOUT_CHUNKS = ("0.9", "1.0")  # versions of HTTP whose clients know no chunks, and no 100 Continue
_GUESS = Rule("be")  # says which request is begun first; who names no class waits for those that do
_MALFORMED = ApiError("the request is no valid HTTP")
_TINY_CHUNKS = ApiError(
    f"the body comes in more than {MAX_TINY_CHUNKS} chunks, of fewer than {MIN_CHUNK_BYTES} bytes on average"
)
_LONG_URL = ApiError(f"the URL has more than {MAX_URL_BYTES} bytes", status=414, code="url_too_long")
_NO_TUNNEL = ApiError("CONNECT: Method Not Allowed", status=405)
_LATE = ApiError(f"no whole headers within {HEAD_TIMEOUT_S:g} s", status=408)
_CROWDED = ApiError(
    "too many connections are open", status=503, kind="server_error", code="overloaded", headers=retry_after(1.0)
)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol: a long head is a 431, a late one a 408, a connection too many a 503. Upgrades are ignored.

    address: whom the connection comes from.

    A connection on which too many requests wait, or one with a long body, is closed. Each takes memory, and the parser
    reads a piece to its end. uvicorn reads no more while one waits, and so sees no client leave. At the end it tells
    the request that came last alone, which may be one that waits.

    Trailers are counted like headers and dropped (RFC 9110, 6.5.1): a proxy judges a request by its headers alone.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_unplaced = 0  # bytes since the parser last told something, beyond a header
        self._is_head = True
        self._num_head_bytes = self._num_fields = 0
        self._num_body_bytes = 0
        self._num_chunks = 0
        self._refusal = _MALFORMED  # of what the parser cannot read
        self._deadline: asyncio.TimerHandle | None = None
        self._begun: RequestResponseCycle | None = None  # the request that is answered, or was last
        self._crowd = Crowd.of(self.server_state)
        self._starts = Starts.of(self.server_state, self.loop)
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._expect_head()
        self.address = self.client[0] if self.client else ""
        one_too_many = self._crowd.enter(self, most_connections())
        if isinstance(one_too_many, BoundedProtocol):
            one_too_many.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        self._crowd.leave(self)
        super().connection_lost(exc)
        if self._begun is not None and not self._begun.response_complete:
            self._begun.disconnected = True
            self._begun.message_event.set()
        self._let_go()

    def _let_go(self) -> None:
        """Drop all requests, which refer to this connection: only a full collection would free them, and it is rare."""
        self.cycle = self._begun = None  # type: ignore[assignment]  # as uvicorn does with its parser
        self.pipeline.clear()
        self.scope, self.headers, self.url = None, [], b""  # type: ignore[assignment]  # as above

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._num_unplaced += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal)
        else:
            if self._num_unplaced > MAX_HEAD_BYTES:
                self._refuse(_too_long(f"more than {MAX_HEAD_BYTES} bytes"))
            elif self.cycle is None or self.cycle.response_complete:
                self._expect_head()

    # --- what the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_head = True
        self._num_head_bytes = self._num_fields = 0
        self._num_body_bytes = self._num_chunks = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))
        if len(self.url) > MAX_URL_BYTES:
            self._refusal = _LONG_URL
            raise httptools.HttpParserError(self._refusal.message)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_fields += 1
        if self._is_head:
            super().on_header(name, value)
        elif name.lower() == b"connection":  # the parser heeds it, and would read no further request
            raise httptools.HttpParserError("a trailer named connection")
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._is_head = False
        self._num_unplaced = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError(f"more than {MAX_PIPELINED} requests wait for an answer that goes out")
        if self.parser.get_http_version() in _WITHOUT_CHUNKS:
            self.expect_100_continue = False
        if not self.parser.should_upgrade():
            self._forget_deadline()
            super().on_headers_complete()
            if self.pipeline:
                self.flow.resume_reading()

    def on_chunk_header(self) -> None:
        self._num_chunks += 1
        if self._num_chunks > MAX_TINY_CHUNKS + self._num_body_bytes // MIN_CHUNK_BYTES:
            self._refusal = _TINY_CHUNKS
            raise httptools.HttpParserError(self._refusal.message)

    def on_body(self, body: bytes) -> None:
        self._num_unplaced = 0
        self._num_body_bytes += len(body)
        if self.pipeline and self._num_body_bytes > HIGH_WATER_LIMIT:
            raise httptools.HttpParserError("a request with a long body waits for an answer that goes out")
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_unplaced = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # ---

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._begun = cycle
        self.loop.call_soon(self._queue, cycle, app)  # the body has come by then, if it came with the head

    def _queue(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        sender = Sender(self.address, _GUESS.seems_rt(bytes(cycle.body), _class_of(cycle)))
        self._starts.add(sender, partial(self._begin, cycle, app))

    def _begin(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if not cycle.disconnected:
            is_old = cycle.scope["http_version"] in _WITHOUT_CHUNKS
            app = self._cutting_off(app)
            super()._start_asgi_task(cycle, _unchunked(cycle, app) if is_old else app)

    def _cutting_off(self, app: ASGI3Application) -> ASGI3Application:
        """Return `app`; the connection ends where the client does not read an answer. A download waits in the file."""

        async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            left_s, is_stream, is_file = MAX_UNREAD_S, False, False

            async def send_read(message: ASGISendEvent) -> None:
                nonlocal left_s, is_stream, is_file
                if message["type"] == "http.response.start":
                    kind = dict(message["headers"]).get(b"content-type", b"")
                    is_stream, is_file = kind.startswith(b"text/event-stream"), kind == b"application/octet-stream"
                elif is_stream and self.flow.write_paused:
                    left_s -= await self._wait_for_reader(left_s)
                await send(message)

            await app(scope, receive, send_read)
            if self.flow.write_paused and not is_file:
                await self._wait_for_reader(left_s if is_stream else MAX_UNREAD_WHOLE_S)

        return run

    async def _wait_for_reader(self, most_s: float) -> float:
        """Wait until the client has read; return the seconds. End the connection where that takes `most_s`."""
        start_s = self.loop.time()
        try:
            async with asyncio.timeout(most_s):
                await self.flow.drain()
        except TimeoutError:
            self.transport.abort()
        return self.loop.time() - start_s

    @property
    def is_waiting(self) -> bool:
        """Whether the client has to send something first."""
        cycle = self.cycle
        return not self.pipeline and (cycle is None or cycle.response_complete or cycle.more_body)

    def make_room(self) -> None:
        """Close the connection for another one."""
        self._crowd.leave(self)
        self._refuse(_CROWDED)

    def _count(self, num_bytes: int) -> None:
        """Count a piece of the head. Raises what ends the parser's work."""
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES or self._num_fields > MAX_HEADERS:
            self._refusal = _too_long(f"more than {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes")
            raise httptools.HttpParserError(self._refusal.message)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request again without the header that offers an upgrade: the parser passes over its body."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(_NO_TUNNEL)
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self._num_unplaced:
            self._refuse(_LATE)
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer a message that is not a request, and close the connection; say nothing while an answer goes out."""
        if self._is_answering:
            self.transport.abort()
            return
        self.transport.write(_written(error))
        self.transport.close()

    @property
    def _is_answering(self) -> bool:
        """Whether the answer to another request, or a part of this one's, would come first."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(self.pipeline) or cycle.response_started or not cycle.more_body


def most_connections() -> int:
    """Return how many connections may be open at once: the process has descriptors for no more."""
    return min(MAX_CONNECTIONS, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_DESCRIPTORS))


def _unchunked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """Return `app` for a client that knows no chunks. A body whose length is not known ends with the connection."""

    async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        has_length = True

        async def send_plain(message: ASGISendEvent) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = b"content-length" in dict(message["headers"])
                cycle.chunked_encoding = None if has_length else False
            elif message["type"] == "http.response.body" and not has_length:
                cycle.expected_content_length = len(message["body"])
            await send(message)

        await app(scope, receive, send_plain)

    return run


def _class_of(cycle: RequestResponseCycle) -> PriorityClass | None:
    """Return the class that a header names, None where it is none."""
    with suppress(ApiError):
        return class_of(Headers(raw=list(cycle.scope["headers"])))
    return None


def _too_long(words: str) -> ApiError:
    return ApiError(f"the head of the request has {words}", status=431, code="headers_too_large")


def _written(error: ApiError) -> bytes:
    """Return an error as it goes over the wire."""
    response = error_response(error)
    headers = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
    return head + headers + b"connection: close\r\n\r\n" + bytes(response.body)
