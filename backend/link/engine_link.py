"""A stub's link to the engine: connect to its socket, or start it; hand requests over; bring chunks back.

    connecting ──socket there──► connected ──EngineState READY──► serving ──connection lost──► every open stream fails,
        ▲  no socket: start the engine, where stubs may                                         connecting again
        └────────────────────────────── wait, longer each time ◄──────────────────────────────────────┘

One thread owns the connection and is the only one that calls sinks, metrics and state listeners.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from backend.config import ConfigFile, engine_command
from backend.core.errors import BrosError, EngineUnavailableError, to_bros_error
from backend.wire.protocol import (
    VERSION,
    Cancel,
    Chunk,
    Chunks,
    EngineState,
    Generation,
    Hello,
    Metrics,
    Prefixes,
    ProtocolError,
    Refused,
    Snapshot,
    Stage,
    Submit,
    ToEngine,
    ToStub,
    WatchPrefixes,
    error_end,
    peer_of,
    send,
    stub_reader,
)

logger = logging.getLogger(__name__)

# Gets the chunks of one request; the last has an `end`. One that raises gets no more but that, and its request ends.
Sink = Callable[[Chunk], None]

_FIRST_WAIT_S = 0.05
_MAX_WAIT_S = 2.0
_SEND_TIMEOUT = struct.pack("ll", 5, 0)  # struct timeval: the engine reads at once; 5 s mean that it hangs


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request on its way: what `cancel` needs to name it."""

    handle: int
    client_id: str


class EngineLink:
    """The engine as a stub sees it. Thread-safe; `close` ends the thread and fails all open requests."""

    def __init__(
        self,
        file: ConfigFile,
        name: str,
        on_metrics: Callable[[Metrics], None] | None = None,
        server_pid: int | None = None,
    ) -> None:
        self._file = file
        self._hello = Hello(VERSION, name, on_metrics is not None, server_pid)
        self._on_metrics = on_metrics
        self._on_prefixes: Callable[[Prefixes | None], None] | None = None
        self._handles = itertools.count(1)
        self._sinks: dict[int, tuple[Ticket, Sink]] = {}  # by handle
        self._socket: socket.socket | None = None
        self._state: EngineState | None = None  # None: no connection
        self._is_closed = False
        self._changed = threading.Condition()  # guards the four above
        self._send_lock = threading.Lock()  # one frame at a time
        self._engine: subprocess.Popen[bytes] | None = None  # the engine this link started last
        self._thread = threading.Thread(target=self._run, name=f"link-{name}", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be taken."""
        state = self._state
        return state is not None and state.stage is Stage.READY

    @property
    def max_seq_len(self) -> int | None:
        """The longest prompt and output together, in tokens; None while no engine says so."""
        state = self._state
        return None if state is None else state.max_seq_len

    def wait_until_ready(self, on_change: Callable[[EngineState], None]) -> None:
        """Wait for the engine to be ready, reporting each state. Raises EngineUnavailableError when it fails."""
        state: EngineState | None = None
        while state is None or state.stage is not Stage.READY:
            state = self._wait_for_news(state)
            on_change(state)
            if state.stage is Stage.FAILED:
                raise EngineUnavailableError(f"the engine failed: {state.detail}")

    def submit(self, client_id: str, generation: Generation, sink: Sink) -> Ticket:
        """Send a request; `sink` gets its chunks. Raises EngineUnavailableError, and then never calls `sink`."""
        arrival_s = time.monotonic()
        return self._open(sink, client_id, lambda handle: Submit(handle, client_id, arrival_s, generation))

    def inspect(self, sink: Sink, *, names_requests: bool = True) -> None:
        """Ask for the engine's snapshot; `sink` gets it as one chunk. Raises EngineUnavailableError."""
        self._open(sink, "", lambda handle: Snapshot(handle, names_requests))

    def watch_prefixes(self, on_prefixes: Callable[[Prefixes | None], None]) -> None:
        """Let `on_prefixes` get what the engine's prefix cache holds, now and from now on; None: the engine is gone.

        To be called once. An engine that comes after this one is asked again.
        """
        with self._changed:
            self._on_prefixes = on_prefixes
            connection = self._socket
        self._try_to_send(connection, WatchPrefixes())

    def watch_prefixes_anew(self) -> None:
        """Ask to be told everything again."""
        self._try_to_send(self._socket, WatchPrefixes())

    def note_refusal(self, priority_class: str, error: BrosError) -> None:
        """Let the engine count a request that was refused here; forgotten where there is no engine."""
        self._try_to_send(self._socket, Refused(priority_class, error.code))

    def cancel(self, ticket: Ticket, *, timed_out: bool = False) -> None:
        """End a request; its sink still gets an end. Unknown and ended requests are ignored."""
        with self._changed:
            connection = self._socket if ticket.handle in self._sinks else None
        self._try_to_send(connection, Cancel(ticket.handle, ticket.client_id, timed_out))

    def close(self) -> None:
        """Disconnect, fail all open requests, end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            if self._socket is not None:
                _disconnect(self._socket)
        self._thread.join()

    def _open(self, sink: Sink, client_id: str, message: Callable[[int], ToEngine]) -> Ticket:
        ticket = Ticket(next(self._handles), client_id)
        with self._changed:
            connection = self._socket
            if connection is None or not self.is_ready:
                raise EngineUnavailableError(self._why_not_ready())
            self._sinks[ticket.handle] = ticket, sink
        try:
            self._send(connection, message(ticket.handle))
        except Exception:
            with self._changed:
                if self._sinks.pop(ticket.handle, None) is not None:
                    raise
        return ticket

    def _wait_for_news(self, seen: EngineState | None) -> EngineState:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._state not in (None, seen))
            if self._is_closed or self._state is None:
                raise EngineUnavailableError("the link to the engine was closed")
            return self._state

    def _try_to_send(self, connection: socket.socket | None, message: ToEngine) -> None:
        if connection is not None:
            try:
                self._send(connection, message)
            except EngineUnavailableError as error:
                logger.debug("not sent, since all of this connection fails: %s", error)

    def _send(self, connection: socket.socket, message: ToEngine) -> None:
        try:
            with self._send_lock:
                send(connection, message)
        except EngineUnavailableError:
            _disconnect(connection)  # half a frame may have gone
            raise

    def _why_not_ready(self) -> str:
        state = self._state
        if state is None:
            return "there is no engine to talk to"
        percent = "" if state.fraction is None else f" {state.fraction:.0%}"
        return f"the engine is {state.stage.value}{percent}: {state.detail}"

    # --- the link's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._is_closed:
            was_ready = False
            try:
                if (connection := self._connect()) is not None:
                    was_ready = self._serve(connection)
            except Exception as error:  # no descriptor left, for instance: it may be well the next time
                logger.error("the link to the engine failed: %s", error, exc_info=error)
            wait_s = _FIRST_WAIT_S if was_ready else min(_MAX_WAIT_S, wait_s * 2)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, wait_s)

    def _connect(self) -> socket.socket | None:
        """Return a connection that has said hello; None when there is no engine (now one may be on its way)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
            connection.connect(str(self._file.socket_path))
            _, uid = peer_of(connection)
            if uid not in (os.getuid(), 0):
                raise EngineUnavailableError(f"user {uid} listens there, who is not us")
            send(connection, self._hello)
        except (OSError, EngineUnavailableError) as error:
            logger.debug("no engine at %s: %s", self._file.socket_path, error)
            connection.close()
            if self._file.config.service.start_engine:
                self._start_engine()
            return None
        return connection

    def _serve(self, connection: socket.socket) -> bool:
        """Read from the engine until it is gone, then fail all open requests; return whether it was ever ready."""
        was_ready = False
        with self._changed:
            if self._is_closed:
                _disconnect(connection)
            self._socket = connection
            is_watching = self._on_prefixes is not None
        if is_watching:
            self._try_to_send(connection, WatchPrefixes())
        try:
            with connection, stub_reader(connection) as reader:
                for message in reader:
                    self._take(message)
                    was_ready = was_ready or self.is_ready
        except (OSError, ProtocolError) as error:
            logger.warning("the connection to the engine broke: %s", error)
        finally:
            self._lose()
        return was_ready

    def _take(self, message: ToStub) -> None:
        match message:
            case Chunks(chunks):
                self._deliver(chunks)
            case EngineState():
                self._set_state(message)
            case Metrics() if self._on_metrics is not None:
                self._on_metrics(message)
            case Prefixes() if self._on_prefixes is not None:
                self._on_prefixes(message)

    def _deliver(self, chunks: tuple[Chunk, ...]) -> None:
        for chunk in chunks:
            with self._changed:
                found = self._sinks.get(chunk.handle) if chunk.end is None else self._sinks.pop(chunk.handle, None)
            if found is not None:
                self._give(*found, chunk)

    def _give(self, ticket: Ticket, sink: Sink, chunk: Chunk) -> None:
        """Hand a chunk to its sink. What a sink raises ends its own request: a stream with a gap would be wrong."""
        try:
            sink(chunk)
        except Exception as error:
            failure = to_bros_error(error, "an answer was not taken")
            if chunk.end is None:
                self._break(ticket, sink, failure)

    def _break(self, ticket: Ticket, sink: Sink, error: BrosError) -> None:
        """End a request whose sink does not take what comes."""
        self.cancel(ticket)
        with self._changed:
            self._sinks.pop(ticket.handle, None)
        self._give(ticket, sink, Chunk(ticket.handle, end=error_end(error)))

    def _set_state(self, state: EngineState | None) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _lose(self) -> None:
        with self._changed:
            self._socket = None
            self._state = None
            lost, self._sinks = self._sinks, {}
            self._changed.notify_all()
        if self._on_prefixes is not None:
            self._on_prefixes(None)
        if lost and not self._is_closed:
            logger.error("the engine is gone; %d open requests fail", len(lost))
        end = error_end(EngineUnavailableError("the engine went away during this request"))
        for ticket, sink in lost.values():
            self._give(ticket, sink, Chunk(ticket.handle, end=end))

    def _start_engine(self) -> None:
        """Start the engine and wait until its socket is there; one that is up already makes ours end at once."""
        if self._engine is not None and self._engine.poll() is None:
            return
        read_fd, write_fd = os.pipe()
        try:
            arguments, environment = engine_command(self._file, write_fd)
            self._engine = subprocess.Popen(
                arguments, env=environment, pass_fds=(write_fd,), stdin=subprocess.DEVNULL, start_new_session=True
            )
            logger.info("started an engine: process %d", self._engine.pid)
            threading.Thread(target=self._engine.wait, name="reap-engine", daemon=True).start()
        except OSError as error:
            logger.error("cannot start an engine: %s", error)
        finally:
            os.close(write_fd)
        os.read(read_fd, 1)  # returns when the engine has closed its end, or has died
        os.close(read_fd)


def _disconnect(connection: socket.socket) -> None:
    """Make both ends see the end of the connection; its reader closes it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        logger.debug("the engine was gone already: %s", error)
