"""Questions to a running server over HTTP: is it ready, does a real request come back, load a model again."""

from __future__ import annotations

import asyncio
import http.client
import json

from backend.serving.launch import ADMIN_HEADER, Launch

CANARY_MODEL = "bros_rt"
CANARY = {"input_ids": [1], "max_tokens": 1}
_TIMEOUT_S = 30.0


async def is_ready(launch: Launch) -> bool:
    """Return whether the server says that it and all its models are ready."""
    return await _status(launch, "GET", "/v2/health/ready") == http.HTTPStatus.OK


async def answers_canary(launch: Launch) -> bool:
    """Return whether one generated token comes back: client, server, stub, engine and model all work."""
    return await _status(launch, "POST", f"/v2/models/{CANARY_MODEL}/generate", CANARY) == http.HTTPStatus.OK


async def reload_model(launch: Launch, model: str) -> bool:
    """Load `model` with a new stub while the old one, if it lives, finishes its streams. Return whether that worked."""
    for source in (launch.models / model).glob("*/model.py"):
        source.touch()
    return await _status(launch, "POST", f"/v2/repository/models/{model}/load", {}) == http.HTTPStatus.OK


async def _status(launch: Launch, method: str, path: str, body: object | None = None) -> int | None:
    """Return the HTTP status of a request, None when nobody answers."""
    return await asyncio.to_thread(_request, launch, method, path, body)


def _request(launch: Launch, method: str, path: str, body: object | None) -> int | None:
    connection = http.client.HTTPConnection(launch.endpoints.host, launch.endpoints.http_port, timeout=_TIMEOUT_S)
    headers = {"Content-Type": "application/json", ADMIN_HEADER: launch.admin_key}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
