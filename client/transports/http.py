"""HTTP: one `generate_stream` request per call, its responses as server-sent events.

httpx2, because it has one interface for threads and for asyncio; tritonclient has no generate endpoint. Closing the
response early closes its connection, which is how the server learns of a cancellation.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from client import wire
from client.errors import CancelledError, UnavailableError, parse_error, readable
from client.generation import Call, Outputs
from client.transports.loopback import direct_mounts
from client.transports.reading import (
    AS_IT_IS,
    MAX_ERROR_BYTES,
    Events,
    read_bounded,
    read_bounded_async,
    require_plain,
)

_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
_CONNECT_TIMEOUT_S = 10.0
_STATUSES = {404: "NOT_FOUND", 503: "UNAVAILABLE"}  # HTTP status -> gRPC status name, for messages without a code


class HttpTransport:
    """Transport over HTTP, for threads. A timeout is noticed when something arrives, or when none came for as long."""

    def __init__(self, url: str = wire.DEFAULT_HTTP_URL, http: httpx2.Client | None = None) -> None:
        self._http = http or httpx2.Client(base_url=url, limits=_LIMITS, mounts=direct_mounts(url))

    def stream(self, call: Call) -> Generator[Outputs, None, None]:
        """See `Transport.stream`."""
        deadline_s = time.monotonic() + (call.timeout_s or float("inf"))
        with _typed_errors(call), self._http.stream("POST", **_request(call)) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, read_bounded(response, MAX_ERROR_BYTES))
            require_plain(response)
            events = Events()
            for piece in response.iter_bytes():
                if time.monotonic() > deadline_s:
                    raise _timed_out(call)
                yield from map(decode_event, events.push(piece))
            yield from map(decode_event, events.end())

    def close(self) -> None:
        """See `Transport.close`."""
        self._http.close()


class AsyncHttpTransport:
    """Transport over HTTP, for one event loop."""

    def __init__(self, url: str = wire.DEFAULT_HTTP_URL, http: httpx2.AsyncClient | None = None) -> None:
        self._http = http or httpx2.AsyncClient(base_url=url, limits=_LIMITS, mounts=direct_mounts(url))

    async def stream(self, call: Call) -> AsyncGenerator[Outputs, None]:
        """See `AsyncTransport.stream`."""
        deadline_s = time.monotonic() + (call.timeout_s or float("inf"))
        with _typed_errors(call):
            async with self._http.stream("POST", **_request(call)) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await read_bounded_async(response, MAX_ERROR_BYTES))
                require_plain(response)
                events = Events()
                async for piece in response.aiter_bytes():
                    if time.monotonic() > deadline_s:
                        raise _timed_out(call)
                    for event in events.push(piece):
                        yield decode_event(event)
                for event in events.end():
                    yield decode_event(event)

    async def close(self) -> None:
        """See `AsyncTransport.close`."""
        await self._http.aclose()


def encode_body(call: Call) -> dict[str, Any]:
    """Return the JSON body for a call: inputs and parameters are keys side by side.

    The body always asks for a stream, and carries the timeout. Triton 2.51 notices that an HTTP client has gone only
    when it writes to it. A request with an answer in one piece would run to its end.
    """
    body: dict[str, Any] = {"id": call.request_id, **call.inputs, **call.parameters}
    if "stream" in body:
        body["stream"] = True
    if call.timeout_s is not None:
        body[wire.TIMEOUT] = int(call.timeout_s * 1e6)
    return body


def decode_event(data: bytes | str) -> Outputs:
    """Return the outputs of one event; raise what it reports. One-element tensors arrive as scalars."""
    with readable():
        event: dict[str, Any] = dict(json.loads(data))
    if "error" in event:
        raise parse_error(str(event["error"]))
    outputs = {name: value for name, value in event.items() if name in wire.OUTPUTS}
    return {name: value if isinstance(value, list) else [value] for name, value in outputs.items()}


def _request(call: Call) -> dict[str, Any]:
    timeout = httpx2.Timeout(call.timeout_s, connect=_CONNECT_TIMEOUT_S)
    return {
        "url": f"/v2/models/{call.model}/generate_stream",
        "json": encode_body(call),
        "timeout": timeout,
        "headers": AS_IT_IS,
    }


@contextmanager
def _typed_errors(call: Call) -> Iterator[None]:
    try:
        yield
    except httpx2.ConnectTimeout as error:
        raise UnavailableError(f"no server answers: {error}") from error
    except httpx2.TimeoutException as error:
        raise _timed_out(call) from error
    except httpx2.HTTPError as error:
        raise UnavailableError(f"no server, or the connection broke: {error}") from error


def _refusal(status_code: int, body: bytes) -> Exception:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = f"HTTP {status_code}: {body[:200].decode(errors='replace')}"
    return parse_error(message, _STATUSES.get(status_code, ""))


def _timed_out(call: Call) -> CancelledError:
    return CancelledError(f"CANCELLED: request {call.request_id!r}: no full answer within {call.timeout_s} s")
