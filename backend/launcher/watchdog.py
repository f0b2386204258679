"""Looks for models of a server that give no sign of life, through the road that requests take.

A canary is a request that the stub answers itself, without the engine: HTTP server, Triton's queue, stub, and the one
thread of Triton that takes a stub's responses. A server under more load than it can bear answers late; it is alive as
long as it executes requests. A model whose stub holds requests back (`max_inflight`) is not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator

from backend.launcher.endpoints import Endpoints
from backend.launcher.launch import Launch
from backend.wire import names as wire

PERIOD_S = 5.0  # from the end of one look to the next
METRICS_TIMEOUT_S = 2.0
_UNBOUNDED = re.compile(rf'"{wire.MODEL_MAX_INFLIGHT}"\s+value\s*{{\s*string_value:\s*"0"')


async def silent_model(launch: Launch) -> str:
    """Return a model of `launch` that gave no sign of life for `canary_timeout_s`, as soon as there is one."""
    models = watched_models(launch)
    while True:
        await asyncio.sleep(min(PERIOD_S, launch.canary_timeout_s))
        are_silent = await asyncio.gather(*(_is_silent(launch, model) for model in models))
        for model, is_silent in zip(models, are_silent, strict=True):
            if is_silent:
                return model


def watched_models(launch: Launch) -> list[str]:
    """Return the models whose stub takes every request at once."""
    configs = sorted(launch.models.glob("*/config.pbtxt"))
    return [path.parent.name for path in configs if _UNBOUNDED.search(path.read_text(errors="replace"))]


async def answers(at: Endpoints, model: str, timeout_s: float) -> bool:
    """Return whether the stub of `model` answers a canary in time."""
    try:
        return (await _send_canary(at, model, timeout_s)).startswith(b"HTTP/1.1 200")
    except OSError:  # a TimeoutError is one
        return False


async def _is_silent(launch: Launch, model: str) -> bool:
    """Tell whether `model` neither answers nor executes anything. A server that is not there is not silent."""
    at = launch.endpoints
    num_before = await _num_executed(at, model)
    try:
        await _send_canary(at, model, launch.canary_timeout_s)
    except TimeoutError:
        num_after = await _num_executed(at, model)
        return num_before is None or num_after is None or num_after <= num_before
    except OSError:
        return False
    return False


async def _send_canary(at: Endpoints, model: str, timeout_s: float) -> bytes:
    """Return the answer's first line. Raises OSError: TimeoutError when there is none."""
    body = json.dumps({wire.INSPECT: wire.INSPECT_STUB})
    request = f"POST /v2/models/{model}/generate HTTP/1.1\r\nHost: bros\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with asyncio.timeout(timeout_s), _connection(at.host, at.http_port, request) as answer:
        return await answer.readline()


async def _num_executed(at: Endpoints, model: str) -> int | None:
    """Return how many requests `model` has taken in, by Triton's own count; None when Triton does not tell."""
    request = "GET /metrics HTTP/1.1\r\nHost: bros\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(METRICS_TIMEOUT_S), _connection(at.host, at.metrics_port, request) as answer:
            text = (await answer.read()).decode(errors="replace")
    except OSError:
        return None
    counts = re.findall(rf'^nv_inference_exec_count{{[^}}]*model="{re.escape(model)}".*}} (\d+)', text, re.MULTILINE)
    return sum(map(int, counts)) if counts else None


@contextlib.asynccontextmanager
async def _connection(host: str, port: int, request: str) -> AsyncIterator[asyncio.StreamReader]:
    """Send `request` on a connection of its own; give what comes back."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request.encode())
        yield reader
    finally:
        writer.close()
