"""Requests between a stub's socket and the engine: each is checked and tokenised here, never behind a lower class.

    reader thread ──submit──► lane rt ─────────────thread──┐
                          ├─► lane rt-long ────────thread──┤
                          ├─► lane rt-schema ──────thread──┤
                          ├─► lane rt-new-schema ──thread──┤
                          └─► the same for be ─────────────┴─ Intake.request ──► outbox.open, engine.post

Each class has four lanes, each with its own thread. A long text takes up to seconds to tokenise, and no short one waits
for that. A JSON schema takes up to seconds to compile, and no short request without one waits for that. None with a
known schema waits until another process has tried a new one. Short requests of a lane reach the engine in their order,
long ones by length. A real-time one never waits for a best-effort text. An error of a request answers that one only.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from backend.core.errors import (
    BrosError,
    EngineUnavailableError,
    OverloadedError,
    RequestCancelledError,
    to_bros_error,
)
from backend.core.request import FinishReason, PriorityClass, RequestId
from backend.engine.engine import Cancel, Command
from backend.engine.engine import Submit as SubmitToEngine
from backend.server.connection import Connection
from backend.server.intake import Intake
from backend.server.metrics import Recorder
from backend.server.outbox import Outbox, timeout_error
from backend.wire.protocol import Chunk, Chunks, End, Generation, Submit, error_end

logger = logging.getLogger(__name__)

_SHORT_BYTES = 6000  # of an entry whose prompt is tokenised sooner than another thread would wake up
_TOKEN_ID_BYTES = 36  # an int and its entry in a tuple
_ENTRY_BYTES = 2000  # what a request takes besides its prompt
_LONG_CHARS = 32_768  # of a text that takes about a tenth of a second or more
_SCHEMA_CHARS = 8  # of text that take about as long as one of a new schema
_OLDEST_IN = 4  # requests that a lane takes, of which one is the oldest, however long
_LONG, _WITH_SCHEMA, _WITH_NEW_SCHEMA = "-long", "-schema", "-new-schema"  # of a lane's name
_MAX_NEW_SCHEMAS = 8  # that wait in a lane; each may take a second to be tried
_JOIN_TIMEOUT_S = 2.0  # at the end; a text that takes longer to tokenise is not waited for


@dataclass(slots=True, eq=False)
class _Entry:
    """A request that is not in the engine yet."""

    connection: Connection
    message: Submit
    request_id: RequestId
    lane: str  # its name
    is_taken: bool = False  # a thread tokenises it; it can no longer be withdrawn
    is_cancelled: bool = False
    timed_out: bool = False  # its own timeout cancelled it
    num_bytes: int = field(init=False)
    weight: int = field(init=False)  # characters of its texts, and of a new schema times `_SCHEMA_CHARS`

    def __post_init__(self) -> None:
        generation = self.message.generation
        self.weight = _num_chars(generation)
        if self.lane.endswith(_WITH_NEW_SCHEMA):
            self.weight += _SCHEMA_CHARS * len(self.schema)
        num_text_bytes = sum(map(sys.getsizeof, (*_texts(generation), self.schema)))
        self.num_bytes = _ENTRY_BYTES + num_text_bytes + _TOKEN_ID_BYTES * len(generation.token_ids or ())

    @property
    def schema(self) -> str:
        """The text of its JSON schema; empty where it has none."""
        return self.message.generation.sampling.json_schema or ""


@dataclass(slots=True, eq=False)
class _Lane:
    """The requests of one kind that wait, in order of arrival."""

    name: str
    has_work: threading.Condition
    short: OrderedDict[RequestId, _Entry] = field(default_factory=OrderedDict)
    long: OrderedDict[RequestId, _Entry] = field(default_factory=OrderedDict)
    num_taken: int = 0
    num_bytes: int = 0  # of those that wait
    schemas: Counter[str] = field(default_factory=Counter)  # of those that wait
    is_busy: bool = False  # some thread tokenises a request of this lane: no other may, or their order would be lost

    @property
    def is_empty(self) -> bool:
        """Whether none waits."""
        return not self.short and not self.long

    def add(self, entry: _Entry) -> None:
        """Let a request wait."""
        self._of_length(entry)[entry.request_id] = entry
        self.num_bytes += entry.num_bytes
        self.schemas[entry.schema] += 1
        self.has_work.notify()

    def remove(self, entry: _Entry) -> None:
        """Take out a request that waits."""
        del self._of_length(entry)[entry.request_id]
        self.num_bytes -= entry.num_bytes
        self.schemas[entry.schema] -= 1
        if not self.schemas[entry.schema]:
            del self.schemas[entry.schema]

    def pop(self) -> _Entry:
        """Take the next: the oldest short one, else the shortest long one. Now and then the oldest of all, which
        shorter ones would keep waiting."""
        self.num_taken += 1
        entry = next(iter(self.short.values()), None) or min(self.long.values(), key=lambda entry: entry.weight)
        if self.num_taken % _OLDEST_IN == 0:
            oldest = next(iter(self.long.values()), entry)
            entry = min(entry, oldest, key=lambda entry: entry.message.arrival_s)
        self.remove(entry)
        return entry

    def _of_length(self, entry: _Entry) -> OrderedDict[RequestId, _Entry]:
        return self.long if entry.weight > _LONG_CHARS else self.short


class IntakeQueue:
    """Brings requests into the engine. `submit`, `cancel` and `drop` may be called from any thread and never wait."""

    def __init__(
        self,
        intake: Intake,
        outbox: Outbox,
        post: Callable[[Command], None],
        metrics: Recorder,
        max_waiting_bytes: int,
    ) -> None:
        """post: hands a command to the engine. max_waiting_bytes: of the requests of one lane that wait."""
        self._intake = intake
        self._outbox = outbox
        self._post = post
        self._metrics = metrics
        self._max_waiting_bytes = max_waiting_bytes
        self._entries: dict[RequestId, _Entry] = {}
        self._is_closed = False
        self._lock = threading.Lock()  # guards the above two, lanes and entries
        self._is_idle = threading.Condition(self._lock)
        names = [c.value + kind for c in PriorityClass for kind in ("", _LONG, _WITH_SCHEMA, _WITH_NEW_SCHEMA)]
        self._lanes = {name: _Lane(name, threading.Condition(self._lock)) for name in names}
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"intake-{name}", daemon=True)
            for name, lane in self._lanes.items()
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, connection: Connection, message: Submit) -> None:
        """Take a request; it is answered through `connection`, whatever happens to it."""
        request_id = connection.request_id(message.handle, message.client_id)
        entry = _Entry(connection, message, request_id, self._lane_name(message))
        try:
            self._intake.check_length(message.generation, entry.request_id)
            is_served_here = self._enqueue(entry)
        except Exception as error:
            refuse(entry.connection, message, to_bros_error(error, "a request was not queued"), self._metrics)
            return
        if is_served_here:
            self._serve(self._lanes[entry.lane], entry)

    def cancel(self, connection: Connection, handle: int, client_id: str, *, timed_out: bool) -> None:
        """End a request, in the engine or on its way there; unknown and ended ones are ignored."""
        request_id = connection.request_id(handle, client_id)
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is not None and entry.is_taken:
                entry.is_cancelled, entry.timed_out = True, timed_out
                return
            if entry is not None:
                self._withdraw(entry)
        if entry is None:
            self._cancel_in_engine(request_id, timed_out)
        else:
            self._answer_cancelled(entry, timed_out)

    def drop(self, connection: Connection) -> None:
        """Forget the requests of a connection that is gone."""
        with self._lock:
            entries = [entry for entry in self._entries.values() if entry.connection is connection]
        for entry in entries:
            self.cancel(connection, entry.message.handle, entry.message.client_id, timed_out=False)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until the engine has every request; return False when that takes longer than `timeout_s`."""
        with self._is_idle:
            return self._is_idle.wait_for(lambda: not self._entries, timeout_s)

    def close(self) -> None:
        """Refuse what waits, and end the threads."""
        with self._lock:
            self._is_closed = True
            left = [entry for entry in self._entries.values() if not entry.is_taken]
            for entry in left:
                self._withdraw(entry)
            for lane in self._lanes.values():
                lane.has_work.notify_all()
        for entry in left:
            refuse(entry.connection, entry.message, EngineUnavailableError("the engine has ended"), self._metrics)
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT_S)

    def _lane_name(self, message: Submit) -> str:
        generation, schema = message.generation, message.generation.sampling.json_schema
        if schema is not None and not self._intake.is_checked(schema):
            return generation.priority_class + _WITH_NEW_SCHEMA
        if _num_chars(generation) > _LONG_CHARS:
            return generation.priority_class + _LONG
        return generation.priority_class + ("" if schema is None else _WITH_SCHEMA)

    def _enqueue(self, entry: _Entry) -> bool:
        """Put a request into its lane; return True where the caller is to serve it: at once, since nothing waits."""
        lane = self._lanes[entry.lane]
        with self._lock:
            self._check_room(lane, entry)
            self._entries[entry.request_id] = entry
            is_urgent = lane.name == PriorityClass.REAL_TIME.value
            if is_urgent and entry.num_bytes < _SHORT_BYTES and lane.is_empty and not lane.is_busy:
                entry.is_taken = lane.is_busy = True
                return True
            lane.add(entry)
            return False

    def _check_room(self, lane: _Lane, entry: _Entry) -> None:
        if self._is_closed:
            raise EngineUnavailableError("the engine has ended")
        if lane.num_bytes + entry.num_bytes > max(self._max_waiting_bytes, entry.num_bytes):
            raise OverloadedError(
                f"request {entry.request_id!r}: {lane.num_bytes} bytes of {lane.name} prompts are waiting; with its "
                f"{entry.num_bytes} they exceed max_waiting_prompt_bytes {self._max_waiting_bytes}",
                retry_after_s=1.0,
            )
        if lane.name.endswith(_WITH_NEW_SCHEMA) and entry.schema not in lane.schemas:
            self._check_new_schemas(lane, entry)

    def _check_new_schemas(self, lane: _Lane, entry: _Entry) -> None:
        if len(lane.schemas) >= _MAX_NEW_SCHEMAS:
            raise OverloadedError(
                f"request {entry.request_id!r}: json_schema: {len(lane.schemas)} new schemas of class "
                f"{entry.message.generation.priority_class} wait to be tried; the limit is {_MAX_NEW_SCHEMAS}",
                retry_after_s=1.0,
            )

    def _withdraw(self, entry: _Entry) -> None:
        """Take out a request that waits; called with the lock held."""
        self._lanes[entry.lane].remove(entry)
        self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        """Called with the lock held."""
        self._entries.pop(entry.request_id, None)
        if not self._entries:
            self._is_idle.notify_all()

    def _answer_cancelled(self, entry: _Entry, timed_out: bool) -> None:
        generation = entry.message.generation
        self._metrics.refused(generation.priority_class, RequestCancelledError.code)
        end = error_end(timeout_error(generation)) if timed_out else End(finish_reason=FinishReason.CANCELLED.value)
        entry.connection.send(Chunks((Chunk(entry.message.handle, end=end),)))

    def _cancel_in_engine(self, request_id: RequestId, timed_out: bool) -> None:
        if timed_out:
            self._outbox.mark_timed_out(request_id)
        self._post(Cancel(request_id))

    # --- the lanes' threads -----------------------------------------------------------------------------------------

    def _run(self, lane: _Lane) -> None:
        while (entry := self._next(lane)) is not None:
            self._serve(lane, entry)

    def _next(self, lane: _Lane) -> _Entry | None:
        """Wait for the next request of a lane and take it; None at the end."""
        with lane.has_work:
            lane.has_work.wait_for(lambda: self._is_closed or not (lane.is_empty or lane.is_busy))
            if self._is_closed:
                return None
            entry = lane.pop()
            entry.is_taken = lane.is_busy = True
            return entry

    def _serve(self, lane: _Lane, entry: _Entry) -> None:
        """Bring a taken request into the engine, then cancel it there if it was cancelled meanwhile."""
        try:
            self._bring_in(entry)
        except Exception as error:
            failure = to_bros_error(error, "a request failed on its way in")
            refuse(entry.connection, entry.message, failure, self._metrics)
        with self._lock:
            self._forget(entry)
            lane.is_busy = False
            if not lane.is_empty:
                lane.has_work.notify()
        if entry.is_cancelled:
            self._cancel_in_engine(entry.request_id, entry.timed_out)

    def _bring_in(self, entry: _Entry) -> None:
        message, generation = entry.message, entry.message.generation
        request = self._intake.request(message, entry.request_id)
        echo = self._intake.prompt_text(generation, request) if generation.echoes_prompt else ""
        self._outbox.open(message.handle, entry.connection, generation, request, echo)
        try:
            self._post(SubmitToEngine(request))
        except Exception as error:
            self._outbox.fail(entry.request_id, to_bros_error(error, "a request was not taken"))


def _texts(generation: Generation) -> tuple[str, str]:
    """Return the texts that become tokens. A chat template writes tools into the prompt."""
    return generation.text or generation.messages or "", generation.tools or ""


def _num_chars(generation: Generation) -> int:
    return sum(map(len, _texts(generation)))


def refuse(connection: Connection, message: Submit, error: BrosError, metrics: Recorder) -> None:
    """Answer a request with an error instead of tokens, and count it."""
    metrics.refused(message.generation.priority_class, error.code)
    connection.send(Chunks((Chunk(message.handle, end=error_end(error)),)))
