"""Sends one line of a batch to the engine until there is an answer to keep: best-effort, due when its batch is."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from client.batch.lines import Line, Reply, lost, responded
from client.batch.run import OVERLOAD_RETRY, lost_waits_s
from client.errors import OverloadedError
from client.generation import PriorityClass
from front.errors import ApiError

_LOG = logging.getLogger(__name__)
_WAITS = (429, 503)  # a full queue empties, and an engine that is down comes back
_LOST = (408, 500)  # cancelled or failed, for no fault of the request
Clock = Callable[[], float]  # Unix time, seconds


class Answer(Protocol):
    """Runs one request: `Engine.answer`. Raises ApiError."""

    async def __call__(self, body: Any, url: str, *, priority_class: PriorityClass) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends the lines of one batch, all of which are due at `due_s`."""

    answer: Answer
    due_s: float
    first_wait_s: float
    now_s: Clock = time.time

    async def send(self, line: Line) -> Reply:
        """Return what a line comes to. Waits as long as the engine is full or down."""
        try:
            body = await self._answered(line)
        except ApiError as error:
            return responded(error.body, None, error.status)
        except Exception as error:
            _LOG.exception("batch: line %d failed here", line.index)
            return lost("server_error", f"the front door failed: {type(error).__name__}")
        return responded(body, body.get("id"))

    async def _answered(self, line: Line) -> dict[str, Any]:
        waits_s = iter(lost_waits_s(self.first_wait_s))
        for attempt in itertools.count(1):
            try:
                return await self.answer(self._due(line), line.url, priority_class="be")
            except ApiError as error:
                wait_s = _advised_s(error, attempt) if error.status in _WAITS else None
                if error.status in _LOST:
                    wait_s = next(waits_s, None)
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    def _due(self, line: Line) -> dict[str, Any]:
        """Return the body with the batch's deadline, or its own where that is sooner."""
        left_ms = max(1.0, (self.due_s - self.now_s()) * 1e3)
        asked = line.body.get("deadline_ms")
        is_sooner = isinstance(asked, int | float) and asked < left_ms
        return {**line.body, "deadline_ms": asked if is_sooner or _is_wrong(asked) else left_ms}


def _is_wrong(deadline_ms: object) -> bool:
    """Return whether the endpoint has to refuse it: that is not for us to mend."""
    return deadline_ms is not None and not isinstance(deadline_ms, int | float)


def _advised_s(error: ApiError, attempt: int) -> float | None:
    advice_s = float(error.headers.get("retry-after-ms", 1000)) / 1e3
    return OVERLOAD_RETRY.wait_s(OverloadedError(error.message, advice_s), attempt, random.random())
