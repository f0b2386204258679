"""Answers clients that ask for the engine's state: one look between two steps serves all who have asked by then."""

from __future__ import annotations

import threading
import time

from backend.core.errors import EngineUnavailableError, InvalidRequestError, OverloadedError, to_bros_error
from backend.core.request import FinishReason
from backend.engine.engine import Inspect
from backend.engine.scheduler import Scheduler
from backend.server.assembly import EngineLike
from backend.server.connection import Connection
from backend.server.snapshot import StepLog, snapshot_json
from backend.wire.protocol import Chunk, Chunks, End, error_end

MAX_WAITING = 16  # answers between two steps; each may be 100 kB, sent on the engine's thread

_Asker = tuple[Connection, int]  # whom to answer, and the handle of the question


class Inspection:
    """Takes questions from any thread; answers them on the engine's."""

    def __init__(self, steps: StepLog) -> None:
        self._steps = steps
        self._asked: list[_Asker] = []
        self._lock = threading.Lock()  # guards the above

    def ask(self, connection: Connection, handle: int, engine: EngineLike | None) -> None:
        """Answer through `connection` with the engine's state as it is between two steps."""
        try:
            if engine is None:
                raise EngineUnavailableError("the engine is loading")
            if not engine.can_be_inspected:
                raise InvalidRequestError("inspect: this executor keeps the KV cache and its requests to itself")
            is_first = self._add(connection, handle)
        except Exception as error:
            _answer([(connection, handle)], error_end(to_bros_error(error, "the engine was not asked")))
            return
        if is_first:
            self._post(engine)

    def _add(self, connection: Connection, handle: int) -> bool:
        """Note who asks; return True where nobody waits yet."""
        with self._lock:
            if len(self._asked) >= MAX_WAITING:
                raise OverloadedError(f"inspect: {MAX_WAITING} answers are waiting", retry_after_s=0.1)
            self._asked.append((connection, handle))
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
        asked = self._take()
        try:
            text = snapshot_json(scheduler, self._steps, time.monotonic())
        except Exception as error:
            _answer(asked, error_end(to_bros_error(error, "the engine's state was not read")))
        else:
            _answer(asked, End(finish_reason=FinishReason.STOP.value), text)


def _answer(asked: list[_Asker], end: End, text: str = "") -> None:
    for connection, handle in asked:
        connection.send(Chunks((Chunk(handle, text, end=end),)))
