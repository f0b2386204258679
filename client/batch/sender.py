"""Sends one line of a batch until there is an answer to keep: best-effort, due when its batch is."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from client.batch.lines import Line, Reply, lost, refused, responded
from client.errors import OverloadedError, UnavailableError
from client.openai.errors import ApiError
from client.retry import Retry

OVERLOAD_RETRY = Retry(max_attempts=10_000, max_wait_s=10.0)  # a full queue empties: hours of waiting are fine
FIRST_WAIT_S = 0.5  # before the second attempt of a request that the engine, or the way to it, lost; doubles
_MAX_ATTEMPTS = 6
_FULL = 429
_LOST = (408, 500)  # cancelled or failed, for no fault of the request
_UNAVAILABLE = 503  # an engine that is down comes back
_LOG = logging.getLogger(__name__)
LeftMs = Callable[[], float | None]  # time that a batch still has; None: no limit


class Answer(Protocol):
    """Runs a request that is due in `left_ms`. Raises ApiError."""

    async def __call__(self, url: str, body: bytes, left_ms: float | None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends the lines of one batch. `waits_for_engine`: as long as it takes, where it is down; else a few attempts."""

    answer: Answer
    left_ms: LeftMs
    first_wait_s: float = FIRST_WAIT_S
    waits_for_engine: bool = True

    async def send(self, line: Line) -> Reply:
        """Return what a line comes to. Waits as long as the engine is full. Raises UnavailableError."""
        try:
            body = await self._answered(line)
        except ApiError as error:
            if error.status == _UNAVAILABLE and not self.waits_for_engine:
                raise UnavailableError(error.message) from error
            return refused(error)
        except Exception as error:
            _LOG.error("batch: line %d failed here: %s: %s", line.index, type(error).__name__, str(error)[:200])
            _LOG.debug("batch: line %d", line.index, exc_info=True)
            return lost("server_error", f"the front door failed: {type(error).__name__}")
        return responded(body, body.get("id"), num_output=body["usage"]["completion_tokens"])

    async def _answered(self, line: Line) -> dict[str, Any]:
        waits_s = iter([self.first_wait_s * 2**number for number in range(_MAX_ATTEMPTS - 1)])
        for attempt in itertools.count(1):
            try:
                return await self.answer(line.url, line.body, self.left_ms())
            except ApiError as error:
                wait_s = _advised_s(error, attempt) if self._is_patient(error.status) else None
                if error.status in (*_LOST, _UNAVAILABLE) and wait_s is None:
                    wait_s = next(waits_s, None)
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    def _is_patient(self, status: int) -> bool:
        return status == _FULL or (status == _UNAVAILABLE and self.waits_for_engine)


def _advised_s(error: ApiError, attempt: int) -> float | None:
    advice_s = float(error.headers.get("retry-after-ms", 1000)) / 1e3
    return OVERLOAD_RETRY.wait_s(OverloadedError(error.message, advice_s), attempt, random.random())
