"""/health, /v1/models, /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from client import wire
from client.openai.asked import Asked, Endpoint, Json, require_sendable
from client.openai.bodies import ChatBody, CompletionBody
from client.openai.chat import CHAT
from client.openai.completions import COMPLETIONS
from client.openai.errors import ApiError, not_found
from client.openai.job import Job, make_job
from client.openai.objects import read_object
from front.engine import Engine, Part
from front.headers import class_of, slos_of
from front.http import Bodies, json_response, length_of, unless_gone
from front.keys import Caller, Keys, client_of
from front.reading import SHORT_BYTES
from front.settings import Settings
from front.streaming import events
from front.turns import Sender

_HEALTH_S = 1.0  # an answer of /health holds so long: who asks oftener costs the engine nothing
_CREATED_S = 1_700_000_000  # of the models, which nobody notes
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Health:
    """Whether the engine answers, asked at most once in `_HEALTH_S` seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._asked_s = float("-inf")
        self._is_well = False

    async def is_well(self) -> bool:
        """Return whether a token came back, now or just now."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() - self._asked_s > _HEALTH_S:
                self._is_well = await self._engine.is_well()
                self._asked_s = loop.time()
        return self._is_well


async def caller_of(request: Request) -> Caller:
    """Return who asks; a dependency of every route that wants a key. Raises ApiError."""
    keys: Keys = request.app.state.keys
    return keys.caller(request.headers.get("authorization"))


def make_router(settings: Settings) -> APIRouter:
    """Return the routes. They find the engine at `app.state.engine`, which lives as long as the event loop."""
    router = APIRouter()

    @router.head("/health", include_in_schema=False)
    @router.get("/health", tags=["server"])
    async def health(request: Request) -> Response:
        """Whether a token comes back from the engine. Asks for no key."""
        if not await request.app.state.health.is_well():
            raise ApiError("no answer from the engine", status=503, kind="server_error", code="engine_down")
        return json_response({"status": "ok"})

    @router.head("/v1/models", include_in_schema=False, dependencies=[Depends(caller_of)])
    @router.get("/v1/models", tags=["models"], dependencies=[Depends(caller_of)])
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model(name) for name in wire.MODELS]})

    @router.get("/v1/models/{model}", tags=["models"], dependencies=[Depends(caller_of)])
    async def model(model: str) -> Response:
        if model not in wire.MODELS:
            raise not_found("model", model, param="model", code="model_not_found")
        return json_response(_model(model))

    @router.post(CHAT.path, tags=["generation"], openapi_extra=takes(ChatBody))
    async def chat(request: Request, caller: Caller = Depends(caller_of)) -> Response:  # noqa: B008 - FastAPI's way
        return await _answer(CHAT, request, caller, settings.max_body_bytes)

    @router.post(COMPLETIONS.path, tags=["generation"], openapi_extra=takes(CompletionBody))
    async def complete(request: Request, caller: Caller = Depends(caller_of)) -> Response:  # noqa: B008
        return await _answer(COMPLETIONS, request, caller, settings.max_body_bytes)

    return router


async def _answer(endpoint: Endpoint, request: Request, caller: Caller, max_bytes: int) -> Response:
    engine: Engine = request.app.state.engine
    bodies: Bodies = request.app.state.bodies
    priority_class, slos = class_of(request.headers), slos_of(request.headers)
    client = client_of(request, caller)
    engine.reading.require_place(client, length_of(request))
    text = await bodies.read_json(request, client, max_bytes)
    sender = Sender(client, is_rt=caller.rule.seems_rt(text, priority_class))
    work = engine.reading(sender, len(text), _read, endpoint, text, slos)
    asked = await (work if len(text) <= SHORT_BYTES else unless_gone(request, work))
    job = make_job(endpoint, asked, caller.rule.served(asked.tier, asked.model, priority_class))
    headers = {"x-request-id": job.request_id}
    if not asked.is_streamed:
        return json_response(await unless_gone(request, engine.complete(job, client)), headers=headers)
    return await _stream(engine, job, client, request, headers | _STREAM_HEADERS)


def _read(endpoint: Endpoint, text: bytes, slos: Mapping[str, float]) -> Asked:
    """Return what a body asks for; it wins over what headers say. Raises ApiError."""
    body = read_object(text)
    asked = endpoint.parse({**body, **{name: slo for name, slo in slos.items() if body.get(name) is None}})
    require_sendable(asked, len(text))
    return asked


async def _stream(engine: Engine, job: Job, client: str, request: Request, headers: dict[str, str]) -> Response:
    """Begin the stream when its first part has come: until then an error is an answer with a status of its own."""
    parts = engine.stream(job, client)
    try:
        first: Part = await unless_gone(request, anext(parts))
    except BaseException:
        await parts.aclose()
        raise
    return StreamingResponse(events(job, first, parts), headers=headers, media_type="text/event-stream")


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": _CREATED_S, "owned_by": "bros"}


def takes(body_type: type) -> dict[str, Any]:
    """Return what the OpenAPI document says of a body."""
    (_, schemas) = msgspec.json.schema_components([body_type], ref_template="#/components/schemas/{name}")
    schema = _inlined(schemas[body_type.__name__], schemas)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, schemas: dict[str, Any]) -> Any:
    """Return `schema` with the named schema in place of each reference."""
    if isinstance(schema, list):
        return [_inlined(item, schemas) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    return {name: _inlined(value, schemas) for name, value in schema.items()}
