"""Looks for models of a server that give no sign of life, on the paths that requests take.

The stub answers a canary itself, without the engine. So it passes HTTP or gRPC, Triton's queue, the stub, and the one
thread of Triton that takes a stub's responses. A model is asked twice before it counts as silent. A server under more
load than it can bear answers late; it is alive as long as it executes requests. A model whose stub holds requests back
(`max_inflight`) is not judged while it may be doing so.

Triton's HTTP threads can be busy for seconds with a few bodies of many keys, while gRPC serves all others. To restart
it would end their streams. So HTTP alone has to be silent for several looks. The front door, which serves all from one
thread, gets as many.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from backend.launcher.canary import HTTP, REQUEST_PATHS, ask_front, connection
from backend.launcher.endpoints import Endpoints
from backend.launcher.launch import Launch
from backend.wire import names as wire

PERIOD_S = 5.0  # from the end of one look to the next
METRICS_TIMEOUT_S = 2.0
NUM_QUESTIONS = 2  # in a row, which share the time that a model has to answer
NUM_HTTP_LOOKS = 6  # in a row, after which a model that answers over gRPC only counts as silent
_MAX_INFLIGHT = re.compile(rf'"{wire.MODEL_MAX_INFLIGHT}"\s+value\s*{{\s*string_value:\s*"(\d+)"')


@dataclass(frozen=True, slots=True)
class Silence:
    """A model that gave no sign of life, and the request path on which it was asked; is_total: on no path."""

    model: str
    path: str
    is_total: bool

    @property
    def num_looks(self) -> int:
        """Looks in a row after which it counts."""
        return 1 if self.is_total or self.path != HTTP else NUM_HTTP_LOOKS


@dataclass(frozen=True, slots=True)
class _Counts:
    """What Triton's metrics say: how many requests a model has taken in, and how many best-effort ones are open."""

    num_executed: int
    num_be: int


async def first_silence(launch: Launch) -> Silence:
    """Return the first model of `launch` that gives no sign of life for `canary_timeout_s`; on HTTP alone, for
    NUM_HTTP_LOOKS times that."""
    models = watched_models(launch)
    num_looks = dict.fromkeys(models, 0)
    while True:
        await asyncio.sleep(min(PERIOD_S, launch.canary_timeout_s))
        looks = (_silence(launch, model, max_inflight) for model, max_inflight in models.items())
        for model, silence in zip(models, await asyncio.gather(*looks), strict=True):
            num_looks[model] = num_looks[model] + 1 if silence is not None else 0
            if silence is not None and num_looks[model] >= silence.num_looks:
                return silence


async def until_front_silent(launch: Launch) -> None:
    """Return when the front door has given no sign of life for NUM_HTTP_LOOKS times `canary_timeout_s`."""
    num_looks = 0
    while num_looks < NUM_HTTP_LOOKS:
        await asyncio.sleep(min(PERIOD_S, launch.canary_timeout_s))
        is_heard = await _is_heard(partial(ask_front, launch.endpoints), launch.canary_timeout_s)
        num_looks = 0 if is_heard else num_looks + 1


def watched_models(launch: Launch) -> dict[str, int]:
    """Return the models, each with the number of requests from which on its stub takes no more; 0: no such number."""
    texts = {path.parent.name: path.read_text(errors="replace") for path in launch.models.glob("*/config.pbtxt")}
    found = {model: _MAX_INFLIGHT.search(text) for model, text in sorted(texts.items())}
    return {model: int(match[1]) for model, match in found.items() if match is not None}


async def _silence(launch: Launch, model: str, max_inflight: int) -> Silence | None:
    """Tell on which request path `model` neither answers nor executes anything. One that answers on the other is not
    late."""
    at = launch.endpoints
    before = await _counts(at, model)
    asks = (partial(path, at, model) for path in REQUEST_PATHS.values())
    are_heard = await asyncio.gather(*(_is_heard(ask, launch.canary_timeout_s) for ask in asks))
    if all(are_heard):
        return None
    after = await _counts(at, model)
    known = [counts for counts in (before, after) if counts is not None]
    if max_inflight and any(counts.num_be >= max_inflight for counts in known):
        return None
    executes = len(known) == 2 and known[1].num_executed > known[0].num_executed
    if executes and not any(are_heard):
        return None
    return Silence(model, list(REQUEST_PATHS)[are_heard.index(False)], is_total=not any(are_heard))


async def _is_heard(ask: Callable[[], Awaitable[object]], timeout_s: float) -> bool:
    """Ask until there is an answer. A server that is not there is not silent."""
    for _ in range(NUM_QUESTIONS):
        try:
            async with asyncio.timeout(timeout_s / NUM_QUESTIONS):
                await ask()
        except TimeoutError:
            continue
        except OSError:
            return True
        return True
    return False


async def _counts(at: Endpoints, model: str) -> _Counts | None:
    """Return Triton's counts; None when Triton does not tell."""
    request = b"GET /metrics HTTP/1.1\r\nHost: bros\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(METRICS_TIMEOUT_S), connection(at.host, at.metrics_port, request) as answer:
            text = (await answer.read()).decode(errors="replace")
    except OSError:
        return None
    executed = _values(text, rf'nv_inference_exec_count{{[^}}]*model="{re.escape(model)}"')
    return _Counts(sum(executed), sum(_values(text, 'bros_requests{[^}]*class="be"'))) if executed else None


def _values(text: str, series: str) -> list[int]:
    return [round(float(value)) for value in re.findall(rf"^{series}[^}}]*}} (\S+)$", text, re.MULTILINE)]
