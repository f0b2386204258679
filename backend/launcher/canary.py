"""The two request paths of a canary: a request that the stub of a model answers itself, sent over HTTP and over gRPC.

Standard library only. The launcher runs where no gRPC library is installed, so the one stream it needs is written out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from backend.launcher.endpoints import Endpoints
from backend.wire import names as wire

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7  # frame types; RFC 9113, 6
_END_STREAM, _END_HEADERS = 0x1, 0x4
_STREAM = 1  # the first that a client may open
_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"

RequestPath = Callable[[Endpoints, str], Awaitable[bytes]]


async def ask_http(at: Endpoints, model: str) -> bytes:
    """Return the first line of the stub's answer. Raises OSError where the connection ends."""
    body = json.dumps({wire.INSPECT: wire.INSPECT_STUB})
    request = f"POST /v2/models/{model}/generate HTTP/1.1\r\nHost: bros\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with connection(at.host, at.http_port, request.encode()) as answer:
        return await answer.readline()


async def ask_grpc(at: Endpoints, model: str) -> bytes:
    """Return the stub's answer, or an empty one where the call ended without. Raises OSError as `ask_http`."""
    async with connection(at.host, at.grpc_port, _call(model)) as answer:
        return await _first_of_stream(answer)


async def ask_front(at: Endpoints) -> bytes:
    """Return the first line of the front door's answer, which it gives without Triton. Raises OSError as `ask_http`."""
    assert at.openai_port is not None
    async with connection(at.host, at.openai_port, b"GET /v1/models HTTP/1.1\r\nHost: bros\r\n\r\n") as answer:
        return await answer.readline()


HTTP, GRPC = "HTTP", "gRPC"
REQUEST_PATHS: Mapping[str, RequestPath] = {HTTP: ask_http, GRPC: ask_grpc}


@contextlib.asynccontextmanager
async def connection(host: str, port: int, request: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Send `request` on a connection of its own; give what comes back."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        yield reader
    finally:
        writer.close()


async def _first_of_stream(answer: asyncio.StreamReader) -> bytes:
    """Read frames to the end of the stream; return its first message. The others are the connection's own."""
    message = b""
    while True:
        try:
            head = await answer.readexactly(9)
            payload = await answer.readexactly(int.from_bytes(head[:3]))
        except asyncio.IncompleteReadError:
            raise ConnectionError("the connection ended before an answer") from None
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
        if kind in (_GOAWAY, _RST_STREAM):
            raise ConnectionError(f"frame {kind} ended the call")
        if stream == _STREAM and kind == _DATA:
            message = message or payload
        if stream == _STREAM and flags & _END_STREAM:
            return message


def _call(model: str) -> bytes:
    """Return all bytes of a call with one request."""
    pseudo = {":method": "POST", ":scheme": "http", ":path": _METHOD, ":authority": "bros"}
    headers = pseudo | {"te": "trailers", "content-type": "application/grpc"}
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers.items())  # RFC 7541, 6.2.2
    message = _message(model)
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, _STREAM, block),
            _frame(_DATA, _END_STREAM, _STREAM, b"\x00" + len(message).to_bytes(4) + message),
        )
    )


def _message(model: str) -> bytes:
    """Return a serialised ModelInferRequest: model_name = 1, parameters = 4 (key = 1, value = 2: string_param = 3)."""
    value = _field(3, wire.INSPECT_STUB.encode())
    return _field(1, model.encode()) + _field(4, _field(1, wire.INSPECT.encode()) + _field(2, value))


def _field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of up to 127 bytes."""
    assert len(content) < 0x80, f"{len(content)} bytes need a longer length"
    return bytes((number << 3 | 2, len(content))) + content


def _text(text: str) -> bytes:
    """Return an HPACK string of up to 126 bytes, not compressed."""
    assert len(text) < 0x7F, f"{len(text)} bytes need a longer length"
    return bytes((len(text),)) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload
