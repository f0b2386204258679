"""HTTP that both endpoints share: a body read with a bound, a client that leaves, errors as OpenAI's bodies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from client.openai.errors import ApiError, retry_after

MAX_HELD_BYTES = 256 * 1024 * 1024  # of all bodies whose end has not come
MAX_OWN_BYTES = MAX_HELD_BYTES // 4  # of those of one client
_SHORT_BYTES = 64 * 1024  # of a body that always has room: the number of connections is bounded too
BODY_TIMEOUT_S = 60.0  # for a whole body; who sends slower holds memory for nothing
CLIENT_CLOSED_REQUEST = 499  # nobody reads it
T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed its connection."""


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `value` as a response in JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """Return an error as a response."""
    return json_response(error.body, error.status, error.headers)


class Bodies:
    """Reads bodies, each with a bound, and all that have not come to their end with one too. Of one event loop."""

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES, max_own_bytes: int = MAX_OWN_BYTES) -> None:
        self._max_held_bytes = max_held_bytes
        self._max_own_bytes = max_own_bytes
        self._num_held_bytes: Counter[str] = Counter()  # by client

    async def read_json(self, request: Request, client: str, max_bytes: int) -> bytes:
        """Return the body of a request, which says that it is JSON. Raises ApiError."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":  # also what a page of another site may send unasked
            raise ApiError(f"content-type: {media_type[:60]!r} is not application/json", status=415)
        return await self.read(request, client, max_bytes)

    async def read(self, request: Request, client: str, max_bytes: int) -> bytes:
        """Return the body of a request. Raises ApiError for one that is encoded, too long, or takes too long."""
        require_plain(request)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for piece in request.stream():
                    body += piece
                    self._num_held_bytes[client] += len(piece)
                    self._require_room(client, len(body), max_bytes)
        except TimeoutError as error:
            raise ApiError(f"no whole body within {BODY_TIMEOUT_S:g} s", status=408) from error
        finally:
            self._num_held_bytes -= Counter({client: len(body)})  # drops a client that has none
        return bytes(body)

    def _require_room(self, client: str, num_bytes: int, max_bytes: int) -> None:
        """Raise ApiError for a body that is too long, or that others, or more of this client, leave no room for."""
        if num_bytes > max_bytes:
            raise ApiError(f"the body exceeds {max_bytes} bytes", status=413, code="body_too_large")
        if num_bytes <= _SHORT_BYTES:
            return
        if self._num_held_bytes.total() > self._max_held_bytes:
            words = f"bodies of {self._max_held_bytes} bytes are on their way, the most at once"
            raise ApiError(words, status=503, kind="server_error", code="overloaded", headers=retry_after(1.0))
        if self._num_held_bytes[client] > self._max_own_bytes:
            words = f"bodies of {self._max_own_bytes} bytes of this client are on their way, the most at once"
            raise ApiError(words, status=429, kind="rate_limit_error", headers=retry_after(1.0))


def length_of(request: Request) -> int:
    """Return how many bytes a body says that it has; 0 where it does not say."""
    return int(request.headers.get("content-length", "0"))  # the parser lets only digits through


def require_plain(request: Request) -> None:
    """Raise ApiError where a body is compressed: none is unpacked here. The status is that of RFC 9110 or 9112."""
    for name, plain, status in (("content-encoding", "identity", 415), ("transfer-encoding", "chunked", 501)):
        coding = ", ".join(request.headers.getlist(name)).strip().lower()
        if coding not in (plain, ""):
            raise ApiError(f"{name}: {coding[:60]!r} is not served; send the body as it is", status=status)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it when the client leaves. Raises ClientGoneError."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answer_errors(app: FastAPI) -> None:
    """Let every error of `app` be answered with one of OpenAI's bodies."""

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(ClientGoneError)
    async def forget(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return error_response(ApiError(f"{name}: {first['msg']}", param=name))

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        words = f"{request.method} {request.url.path[:200]}: {HTTPStatus(error.status_code).phrase}"
        return error_response(ApiError(words, status=error.status_code, headers=error.headers))
