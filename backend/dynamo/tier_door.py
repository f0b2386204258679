"""A door in front of Dynamo's frontend, which loses OpenAI's `service_tier`: it turns tiers into headers.

    python -m backend.dynamo.tier_door --port 8080 --frontend http://127.0.0.1:8000

    in the body                                   in the header
    service_tier: flex | priority, fast, scale    x-dynamo-meta-policy-class: be | rt
    ttft_slo_ms, tpot_slo_ms, deadline_ms         x-dynamo-meta-ttft-slo-ms, …

The rest passes through both ways. A client that leaves closes its request at the frontend.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import web

CLASS_HEADER = "x-dynamo-meta-policy-class"
# As `client.openai.tiers` has them; a test compares both.
CLASS_OF_TIER = {"flex": "be", "priority": "rt", "fast": "rt", "scale": "rt", "default": None, "auto": None}
_OBJECTIVES = ("ttft_slo_ms", "tpot_slo_ms", "deadline_ms")
_MAX_BODY_BYTES = 8 * 1024 * 1024
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "te", "trailer"}
_FRONTEND = web.AppKey("frontend", str)
_SESSION = web.AppKey("session", aiohttp.ClientSession)


def translated(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """Return the body as Dynamo takes it, and the headers for the fields taken out. Raises ValueError."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return body, {}  # the frontend refuses it and says why
    if not isinstance(fields, dict):
        return body, {}
    found = {name: fields.pop(name) for name in ("service_tier", *_OBJECTIVES) if name in fields}
    if not found:
        return body, {}
    added = {
        f"x-dynamo-meta-{name.replace('_', '-')}": _number(name, found[name]) for name in _OBJECTIVES if found.get(name)
    }
    named = _class_of(found.get("service_tier"))
    given = headers.get(CLASS_HEADER)
    if named is not None and given not in (None, named):
        raise ValueError(f"service_tier: {found['service_tier']!r} is class {named!r}; {CLASS_HEADER} says {given!r}")
    return json.dumps(fields).encode(), added | ({CLASS_HEADER: named} if named is not None else {})


def _class_of(tier: Any) -> str | None:
    """Return the class of a tier; None: the default one."""
    if tier is None:
        return None
    if not isinstance(tier, str) or tier not in CLASS_OF_TIER:
        raise ValueError(f"service_tier: {str(tier)[:100]!r} is not one of {', '.join(CLASS_OF_TIER)}")
    return CLASS_OF_TIER[tier]


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: {str(value)[:100]!r} is not a number of milliseconds")
    return f"{value:g}"


async def _pass_on(request: web.Request) -> web.StreamResponse:
    if not request.raw_path.startswith("/"):
        return _error(HTTPStatus.BAD_REQUEST, "the target of a request is a path here", "invalid_request_error")
    try:
        body, added = translated(await request.read(), request.headers)
    except ValueError as error:
        return _error(HTTPStatus.BAD_REQUEST, str(error), "invalid_request_error")
    url = request.app[_FRONTEND] + request.raw_path
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP} | added
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

    app = web.Application(client_max_size=_MAX_BODY_BYTES)
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
