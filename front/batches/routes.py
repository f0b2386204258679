"""/v1/files and /v1/batches. A caller sees only files and batches made with its own key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from msgspec import Meta

from client import wire
from client.openai.bodies import parse
from client.openai.errors import ApiError, not_found
from client.openai.objects import read_object
from front.batches.objects import Batch, StoredFile
from front.batches.service import Batches
from front.batches.store import Cut
from front.http import Bodies, json_response
from front.keys import Caller, client_of
from front.routes import caller_of, takes

_DOWNLOAD = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}  # never a page of ours
_MAX_BODY_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024
_MAX_LISTED = 500  # files of one answer, whatever `limit` says: nobody else is served meanwhile
_Label = Annotated[str, Meta(max_length=512)]
_FORM = {
    "type": "object",
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary"},
    },
    "required": ["purpose", "file"],
}
_TAKES_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


class BatchBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/batches."""

    input_file_id: Annotated[str, Meta(max_length=128)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], _Label], Meta(max_length=16)] | None = None


async def batches_of(request: Request) -> Batches:
    """Return the files and batches of this process. Raises ApiError where it keeps none."""
    batches: Batches | None = request.app.state.batches
    if batches is None:
        raise ApiError("files and batches are off: bros-openai was started without --data-dir", status=404)
    return batches


async def batcher(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """Return a caller that may have best-effort, the class of every batch. Raises ApiError."""
    caller.rule.served("flex", wire.MODEL)
    return caller


def only(*names: str) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that refuses query parameters with other names."""

    async def require(request: Request) -> None:
        if unknown := sorted(set(request.query_params) - {*names}):
            name = unknown[0][:100]
            raise ApiError(f"unknown query parameter {name!r}", param=name, code="unknown_parameter")

    return require


_Caller = Annotated[Caller, Depends(batcher)]
_Batches = Annotated[Batches, Depends(batches_of)]


def make_router() -> APIRouter:
    """Return the routes. They find the batches at `app.state.batches`, which live as long as the event loop."""
    router = APIRouter()
    _add_files(router)
    _add_batches(router)
    return router


def _add_files(router: APIRouter) -> None:
    @router.post("/v1/files", tags=["files"], openapi_extra=_TAKES_FORM)
    async def upload(request: Request, caller: _Caller, batches: _Batches) -> Response:
        async with batches.uploads.take(client_of(request, caller), request) as taken:
            file = await batches.add_file(caller.name, taken)
        return json_response(file.shown)

    @router.get("/v1/files", tags=["files"], dependencies=[Depends(only("purpose", "limit", "order", "after"))])
    async def list_files(
        caller: _Caller,
        batches: _Batches,
        purpose: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
        after: Annotated[str | None, Query(max_length=128)] = None,
    ) -> Response:
        limit = min(limit, _MAX_LISTED)
        cut = Cut(limit + 1, after, newest_first=order == "desc")
        return _listed(await batches.files(caller.name, cut, purpose), limit)

    @router.get("/v1/files/{file_id}", tags=["files"])
    async def file(file_id: str, caller: _Caller, batches: _Batches) -> Response:
        return json_response((await batches.file(caller.name, file_id)).shown)

    @router.delete("/v1/files/{file_id}", tags=["files"])
    async def delete_file(file_id: str, caller: _Caller, batches: _Batches) -> Response:
        await batches.delete_file(caller.name, file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})

    @router.get("/v1/files/{file_id}/content", tags=["files"])
    async def content(file_id: str, caller: _Caller, batches: _Batches) -> Response:
        file, path = await batches.content(caller.name, file_id)
        if not await asyncio.to_thread(path.is_file):  # deleted just now
            raise not_found("file", file_id)
        headers = {"Content-Length": str(file.num_bytes), **_DOWNLOAD, **_attachment(file.filename)}
        return StreamingResponse(_pieces(path, file.num_bytes), headers=headers, media_type="application/octet-stream")


def _add_batches(router: APIRouter) -> None:
    @router.post("/v1/batches", tags=["batches"], openapi_extra=takes(BatchBody))
    async def add_batch(request: Request, caller: _Caller, batches: _Batches) -> Response:
        bodies: Bodies = request.app.state.bodies
        body = parse(
            BatchBody, read_object(await bodies.read_json(request, client_of(request, caller), _MAX_BODY_BYTES))
        )
        batch = await batches.add_batch(caller.name, body.endpoint, body.input_file_id, body.metadata)
        return json_response(batch.shown)

    @router.get("/v1/batches", tags=["batches"], dependencies=[Depends(only("limit", "after"))])
    async def list_batches(
        caller: _Caller,
        batches: _Batches,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=128)] = None,
    ) -> Response:
        return _listed(await batches.batches(caller.name, Cut(limit + 1, after)), limit)

    @router.get("/v1/batches/{batch_id}", tags=["batches"])
    async def batch(batch_id: str, caller: _Caller, batches: _Batches) -> Response:
        return json_response((await batches.batch(caller.name, batch_id)).shown)

    @router.post("/v1/batches/{batch_id}/cancel", tags=["batches"])
    async def cancel(batch_id: str, caller: _Caller, batches: _Batches) -> Response:
        return json_response((await batches.cancel(caller.name, batch_id)).shown)


def _listed(found: Sequence[StoredFile | Batch], limit: int) -> Response:
    """Return a list of which one more than `limit` was asked for, to know whether there is more."""
    shown = found[:limit]
    ids = {"first_id": shown[0].id, "last_id": shown[-1].id} if shown else {"first_id": None, "last_id": None}
    return json_response(
        {"object": "list", "data": [each.shown for each in shown], **ids, "has_more": len(found) > limit}
    )


def _pieces(path: Path, num_bytes: int) -> Iterator[bytes]:
    """Yield a file; a thread of the server's reads it. It is open while a piece is read only, so that a client which
    reads nothing holds no descriptor."""
    for start in range(0, num_bytes, _PIECE_BYTES):
        with path.open("rb") as file:
            file.seek(start)
            piece = file.read(_PIECE_BYTES)
        yield piece


def _attachment(filename: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename, errors='replace')}"}
