"""Answers clients that ask for the engine's state: one look between two steps serves all who have asked by then."""

from __future__ import annotations

import threading
import time
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from backend.core.errors import EngineUnavailableError, InvalidRequestError, OverloadedError, to_bros_error
from backend.core.request import FinishReason
from backend.engine.engine import Inspect
from backend.engine.scheduler import Scheduler
from backend.server.assembly import EngineLike
from backend.server.connection import Connection
from backend.server.snapshot import StepLog, snapshot_json
from backend.wire.protocol import Chunk, Chunks, End, error_end

_names_requests = attrgetter("names_requests")
MAX_WAITING = 16  # answers between two steps; each may be 100 kB, sent on the engine's thread


class _Asker(NamedTuple):
    """Whom to answer, the handle of the question, and whether the answer names requests."""

    connection: Connection
    handle: int
    names_requests: bool


class Inspection:
    """Takes questions from any thread; answers them on the engine's."""

    def __init__(self, steps: StepLog) -> None:
        self._steps = steps
        self._asked: list[_Asker] = []
        self._lock = threading.Lock()  # guards the above

    def ask(
        self, connection: Connection, handle: int, engine: EngineLike | None, *, names_requests: bool = True
    ) -> None:
        """Answer through `connection` with the engine's state as it is between two steps."""
        asker = _Asker(connection, handle, names_requests)
        try:
            if engine is None:
                raise EngineUnavailableError("the engine is loading")
            if not engine.can_be_inspected:
                raise InvalidRequestError("inspect: this executor keeps the KV cache and its requests to itself")
            is_first = self._add(asker)
        except Exception as error:
            _answer([asker], error_end(to_bros_error(error, "the engine was not asked")))
            return
        if is_first:
            self._post(engine)

    def _add(self, asker: _Asker) -> bool:
        """Note who asks; return True where nobody waits yet."""
        with self._lock:
            if len(self._asked) >= MAX_WAITING:
                raise OverloadedError(f"inspect: {MAX_WAITING} answers are waiting", retry_after_s=0.1)
            self._asked.append(asker)
            return len(self._asked) == 1

    def _post(self, engine: EngineLike) -> None:
        try:
            engine.post(Inspect(self._look))
        except Exception as error:
            _answer(self._take(), error_end(to_bros_error(error, "the engine was not asked")))

    def _take(self) -> list[_Asker]:
        with self._lock:
            asked, self._asked = self._asked, []
        return asked

    def _look(self, scheduler: Scheduler) -> None:
        """Called on the engine's thread."""
        for names_requests, asked in groupby(sorted(self._take(), key=_names_requests), key=_names_requests):
            askers = list(asked)
            try:
                text = snapshot_json(scheduler, self._steps, time.monotonic(), names_requests=names_requests)
            except Exception as error:
                _answer(askers, error_end(to_bros_error(error, "the engine's state was not read")))
            else:
                _answer(askers, End(finish_reason=FinishReason.STOP.value), text)


def _answer(asked: list[_Asker], end: End, text: str = "") -> None:
    for asker in asked:
        asker.connection.send(Chunks((Chunk(asker.handle, text, end=end),)))
