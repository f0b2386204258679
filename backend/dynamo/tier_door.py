"""A door in front of Dynamo's frontend, which loses OpenAI's `service_tier`: it turns tiers into headers.

    python -m backend.dynamo.tier_door --port 8080 --frontend http://127.0.0.1:8000

    in the body                                   in the header
    service_tier: flex | priority, fast, scale    x-dynamo-meta-policy-class: be | rt
    ttft_slo_ms, tpot_slo_ms, deadline_ms         x-dynamo-meta-ttft-slo-ms, …

The rest passes through both ways. A field that Dynamo takes and drops is a 400. A client that leaves closes its request
at the frontend.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
import numpy as np
from aiohttp import web

CLASS_HEADER = "x-dynamo-meta-policy-class"
# As `client.openai.tiers` has them; a test compares both.
CLASS_OF_TIER = {"flex": "be", "priority": "rt", "fast": "rt", "scale": "rt", "default": None, "auto": None}
_OBJECTIVES = ("ttft_slo_ms", "tpot_slo_ms", "deadline_ms")
# Bounds as those of `front`, whose words say why; a test compares them.
MAX_BODY_BYTES = 2 * 1024 * 1024
BODY_TIMEOUT_S = 60.0
_MAX_FIELDS = 60_000  # of all objects together
_SHORT_BYTES = 16 * 1024  # read on the event loop: the way to a thread would take longer
_MAX_VALUE_BYTES = 1024  # of a field that becomes a header
_MAX_MS = 2_592_000_000  # 30 days
# Fields that Dynamo takes and its workers never see, with the values that ask for nothing.
UNSERVED: Mapping[str, tuple[object, ...]] = {
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "thinking_token_budget": (),
    "verbosity": (),
    "store": (False,),
    "web_search_options": (),
}
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])  # the value of a field is passed on unread
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "te", "trailer"}
_FRONTEND = web.AppKey("frontend", str)
_SESSION = web.AppKey("session", aiohttp.ClientSession)
_READER = web.AppKey("reader", ThreadPoolExecutor)


def translated(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """Return the body as Dynamo takes it, and the headers for the fields taken out. Raises ValueError."""
    _require_few_fields(body)
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body, {}  # the frontend refuses it and says why
    _require_served(fields)
    found = {name: _value(name, fields.pop(name)) for name in ("service_tier", *_OBJECTIVES) if name in fields}
    if not found:
        return body, {}
    added = {
        f"x-dynamo-meta-{name.replace('_', '-')}": _number(name, found[name])
        for name in _OBJECTIVES
        if found.get(name) is not None
    }
    named = _class_of(found.get("service_tier"))
    given = headers.get(CLASS_HEADER)
    if named is not None and given not in (None, named):
        raise ValueError(f"service_tier: {found['service_tier']!r} is class {named!r}; {CLASS_HEADER} says {given!r}")
    return msgspec.json.encode(fields), added | ({CLASS_HEADER: named} if named is not None else {})


def _require_served(fields: Mapping[str, msgspec.Raw]) -> None:
    """Raise ValueError for a field that would have no effect, and for `min_tokens` that Dynamo would cut."""
    for name in UNSERVED.keys() & fields.keys():
        if (value := _value(name, fields[name])) is not None and value not in UNSERVED[name]:
            raise ValueError(f"{name}: this value is not supported")
    least = _value("min_tokens", fields["min_tokens"]) if "min_tokens" in fields else None
    for name in ("max_tokens", "max_completion_tokens"):
        most = _value(name, fields[name]) if name in fields else None
        if isinstance(least, int) and isinstance(most, int) and least > most:
            raise ValueError(f"min_tokens: {least} exceeds {name} {most}")


def _require_few_fields(body: bytes) -> None:
    """Raise ValueError where objects hold more fields than a request needs. Takes 10 ms a MiB, whatever they hold."""
    if len(body) <= _SHORT_BYTES:
        return
    signs = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    is_inside = np.logical_xor.accumulate(signs == ord('"'))
    num_fields = int(np.count_nonzero((signs == ord(":")) & ~is_inside))
    if num_fields > _MAX_FIELDS:
        raise ValueError(f"the body holds {num_fields} fields; the most are {_MAX_FIELDS}")


def _value(name: str, raw: msgspec.Raw) -> Any:
    """Return a field's value. Raises ValueError for one that is long, and for a number out of range."""
    text = bytes(raw)
    if len(text) > _MAX_VALUE_BYTES:
        raise ValueError(f"{name}: {len(text)} bytes exceed {_MAX_VALUE_BYTES}")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _class_of(tier: Any) -> str | None:
    """Return the class of a tier; None: the default one."""
    if tier is None:
        return None
    if not isinstance(tier, str) or tier not in CLASS_OF_TIER:
        raise ValueError(f"service_tier: {str(tier)[:100]!r} is not one of {', '.join(CLASS_OF_TIER)}")
    return CLASS_OF_TIER[tier]


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_MS:
        raise ValueError(f"{name}: {str(value)[:100]!r} is not a number of milliseconds above 0")
    return f"{value:.15g}"


async def _read(request: web.Request) -> tuple[bytes, dict[str, str]]:
    """Return what `translated` does; a long body is read away from the event loop. Raises ValueError, TimeoutError."""
    if coding := request.headers.get("content-encoding"):
        raise ValueError(f"content-encoding: {coding[:60]!r} is not served; send the body as it is")
    async with asyncio.timeout(BODY_TIMEOUT_S):
        body = await request.read()
    if len(body) <= _SHORT_BYTES:
        return translated(body, request.headers)
    return await asyncio.get_running_loop().run_in_executor(request.app[_READER], translated, body, request.headers)


async def _pass_on(request: web.Request) -> web.StreamResponse:
    if not request.raw_path.startswith("/"):
        return _error(HTTPStatus.BAD_REQUEST, "the target of a request is a path here", "invalid_request_error")
    try:
        body, added = await _read(request)
    except TimeoutError:
        return _error(HTTPStatus.REQUEST_TIMEOUT, f"no whole body within {BODY_TIMEOUT_S:g} s", "invalid_request_error")
    except ValueError as error:
        return _error(HTTPStatus.BAD_REQUEST, str(error), "invalid_request_error")
    url = request.app[_FRONTEND] + request.raw_path
    replaced = _HOP_BY_HOP | added.keys()  # the body wins over a header, however that is spelt
    headers = {name: value for name, value in request.headers.items() if name.lower() not in replaced} | added
    try:
        upstream = await request.app[_SESSION].request(request.method, url, data=body or None, headers=headers)
    except aiohttp.ClientError as error:
        return _error(HTTPStatus.BAD_GATEWAY, f"the frontend is not there: {error}", "server_error")
    async with upstream:
        kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _HOP_BY_HOP}
        response = web.StreamResponse(status=upstream.status, headers=kept)
        await response.prepare(request)
        async for piece in upstream.content.iter_any():
            await response.write(piece)
        await response.write_eof()
    return response


def _error(status: HTTPStatus, message: str, kind: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "code": status.value}}, status=status)


def make_app(frontend: str) -> web.Application:
    """Return the door of the frontend at the URL `frontend`."""

    async def session(app: web.Application) -> Any:
        timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as app[_SESSION]:
            yield
        app[_READER].shutdown(wait=False, cancel_futures=True)

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[_READER] = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
    app[_FRONTEND] = frontend.rstrip("/")
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", _pass_on)
    return app


def main() -> int:
    """Run the command line until a signal ends it; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m backend.dynamo.tier_door",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: 8080)")
    parser.add_argument("--frontend", required=True, help="URL of Dynamo's frontend")
    arguments = parser.parse_args()
    app = make_app(arguments.frontend)
    web.run_app(app, host=arguments.host, port=arguments.port, handler_cancellation=True, print=None, access_log=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
