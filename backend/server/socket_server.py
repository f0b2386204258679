"""The socket server around an engine: the engine process, once it has its socket.

    stub ══ socket ══► reader threads ──► intake threads ──► engine thread ──► outbox thread ══ socket ══► stub
                       one a stub         check, tokenise    Engine.run        text, stop words

Stubs and launchers are served before the model is loaded, so that they can follow the loading. Each of these threads
serves many: what one message or request raises is answered to its sender, and ends nothing else.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from backend.config import ConfigFile
from backend.core.errors import BrosError, ConfigError, EngineUnavailableError
from backend.core.garbage import collect_rarely
from backend.core.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.core.request import RequestId
from backend.engine.engine import Cancel, Emit, Engine, Inspect
from backend.engine.step_file import StepFile
from backend.server.assembly import EngineLike, Progress, Runtime, load_runtime, make_tokenizer
from backend.server.connection import Connection
from backend.server.inspection import Inspection
from backend.server.intake import Intake
from backend.server.intake_queue import IntakeQueue, refuse
from backend.server.listener import Listener
from backend.server.metrics import Recorder
from backend.server.orphans import watch_stub
from backend.server.outbox import Outbox
from backend.server.prefix_feed import PrefixFeed
from backend.server.snapshot import StepLog
from backend.wire.protocol import (
    VERSION,
    EngineState,
    Hello,
    ProtocolError,
    Reader,
    Refused,
    Snapshot,
    Stage,
    ToEngine,
    WatchPrefixes,
    engine_reader,
)
from backend.wire.protocol import Cancel as CancelMessage
from backend.wire.protocol import Submit as SubmitMessage

logger = logging.getLogger(__name__)

_FAILED_EXIT_S = 2.0  # stubs look for an engine at least as often (engine_link)
_ACCEPT_PAUSE_S = 0.2  # where the system has no descriptor or thread for a further connection
_JOIN_TIMEOUT_S = 10.0  # a step that takes longer than this is not waited for at the end


class EngineServer:
    """The socket server around an engine. `run` is called on the main thread; `request_stop` from any other."""

    def __init__(self, file: ConfigFile, listener: Listener, exits_when_unused: bool) -> None:
        self._config = file.config
        self._listener = listener
        self._state = EngineState(Stage.LOADING, "starting")
        self._max_seq_len: int | None = None  # until it is loaded
        self._metrics = Recorder()
        self._steps = StepLog()
        self._inspection = Inspection(self._steps)
        self._prefixes = PrefixFeed()
        self._step_file: StepFile | None = None
        self._connections: dict[Connection, None] = {}
        self._is_closed = False
        self._lock = threading.Lock()  # guards state, connections and is_closed; held while a state is sent to all
        self._exits_when_unused = exits_when_unused
        self._unused_timer: threading.Timer | None = None
        self._stop = threading.Event()
        self._intake: IntakeQueue | None = None
        self._outbox: Outbox | None = None
        self._engine: EngineLike | None = None

    def run(self) -> int:
        """Load the model, serve until `request_stop`, drain; return the exit code."""
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        with self._lock:
            self._watch_use()
        loaded: Future[tuple[Runtime, Outbox]] = Future()
        thread = threading.Thread(target=self._load_and_run, args=(loaded,), name="engine", daemon=True)
        thread.start()
        try:
            runtime, outbox = loaded.result()
        except BrosError as error:
            logger.error("%s: %s", error.code, error)
            self._tell_failure(str(error))
            return 2 if isinstance(error, ConfigError) else 1
        except Exception as error:
            logger.exception("the model cannot be loaded")
            self._tell_failure(repr(error))
            return 1
        self._serve_until_stopped(runtime, outbox, thread)
        return 0 if runtime.engine.error is None else 1

    def request_stop(self) -> None:
        """Make `run` drain and return."""
        self._stop.set()

    @property
    def is_loading(self) -> bool:
        return self._state.stage is Stage.LOADING

    def _load_and_run(self, loaded: Future[tuple[Runtime, Outbox]]) -> None:
        """Load the model on the thread that will step it.

        OpenMP keeps a team of threads for every thread that ever computed. With a second team on the same cores no team
        spins between two kernels, and steps take twice as long.
        """
        try:
            runtime, outbox = self._load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result((runtime, outbox))
        self._run_engine(runtime.engine)

    def _load(self) -> tuple[Runtime, Outbox]:
        service = self._config.service
        on_progress: Progress = lambda what, fraction: self._set_state(Stage.LOADING, what, fraction)  # noqa: E731
        tokenizer = make_tokenizer(self._config)
        outbox = Outbox(tokenizer, service.coalesce_s, self._metrics, self._cancel)
        if service.step_file is not None:  # here, where this process has the socket: another's file stays as it is
            self._step_file = StepFile(Path(service.step_file))
        emit: Emit = lambda output: self._emit(outbox, output)  # noqa: E731
        runtime = load_runtime(self._config, tokenizer, emit, self._record, on_progress)
        intake = Intake(tokenizer, service, runtime.max_seq_len, runtime.vocab_size, runtime.abilities)
        self._outbox, self._engine, self._max_seq_len = outbox, runtime.engine, runtime.max_seq_len
        self._intake = IntakeQueue(intake, outbox, runtime.engine.post, self._metrics, service.max_waiting_prompt_bytes)
        return runtime, outbox

    def _emit(self, outbox: Outbox, output: StepOutput) -> None:
        """Carry away what a step gave, or a command; called on the engine's thread."""
        outbox.emit(output)
        self._prefixes.flush()

    def _watch_prefixes(self, connection: Connection) -> None:
        self._prefixes.watch(connection)
        if (engine := self._engine) is not None and engine.can_be_inspected:
            engine.post(Inspect(lambda _: self._prefixes.flush()))

    def _cancel(self, request_id: RequestId) -> None:
        if self._engine is not None:
            self._engine.post(Cancel(request_id))

    def _tell_failure(self, why: str) -> None:
        """Say that nothing could be loaded, also to stubs that are about to connect: they would start another engine,
        and never fail. A launcher sees its engine end."""
        self._set_state(Stage.FAILED, why)
        if self._exits_when_unused:
            self._stop.wait(_FAILED_EXIT_S)

    def _serve_until_stopped(self, runtime: Runtime, outbox: Outbox, thread: threading.Thread) -> None:
        threading.Thread(target=self._flush_metrics, args=(runtime,), name="metrics", daemon=True).start()
        self._steps.facts = runtime.facts
        self._set_state(Stage.READY, "\n".join(runtime.facts))
        self._stop.wait()
        self._drain(runtime.engine, outbox)
        thread.join(_JOIN_TIMEOUT_S)
        self._close(outbox)
        if not thread.is_alive():
            runtime.close()
            if self._step_file is not None:
                self._step_file.close()

    def _record(self, plan: StepPlan, batch: StepBatch, result: StepResult, output: StepOutput) -> None:
        self._metrics.step(plan, batch, result, output)
        self._steps.record(plan, batch, result, output)
        if self._step_file is not None:
            self._step_file.record(plan, batch, result, output)

    def _run_engine(self, engine: EngineLike) -> None:
        collect_rarely()
        if isinstance(engine, Engine):
            self._prefixes.start(engine.scheduler.kv)
        try:
            engine.run()
        except BaseException as error:
            if error is not engine.error:
                raise
            # The main thread tells it to every stub. An error of this thread would end the process before.
        finally:
            self._stop.set()

    def _drain(self, engine: EngineLike, outbox: Outbox) -> None:
        assert self._intake is not None, "an engine without an intake"
        if engine.error is None:
            self._set_state(Stage.DRAINING)
            give_up_s = time.monotonic() + self._config.service.drain_timeout_s
            is_idle = self._intake.wait_until_idle(self._config.service.drain_timeout_s)
            if not (is_idle and outbox.wait_until_idle(max(0.0, give_up_s - time.monotonic()))):
                logger.warning("requests were still open after %g s: they fail", self._config.service.drain_timeout_s)
        else:
            self._set_state(Stage.FAILED, f"the engine stopped: {engine.error}")
        self._intake.close()
        engine.stop()

    def _close(self, outbox: Outbox) -> None:
        outbox.close()
        with self._lock:
            self._is_closed = True
            connections = list(self._connections)
        for connection in connections:
            connection.flush(timeout_s=1.0)
            connection.close()

    def _set_state(self, stage: Stage, detail: str = "", fraction: float | None = None) -> None:
        if (stage, detail) != (self._state.stage, self._state.detail):
            logger.info("%s %s", stage.value, detail)
        with self._lock:
            self._state = EngineState(stage, detail, fraction, self._max_seq_len)
            for connection in self._connections:
                connection.send(self._state)

    def _watch_use(self) -> None:
        """Start the clock when the last connection has gone, stop it when one came; called with the lock held."""
        if self._unused_timer is not None:
            self._unused_timer.cancel()
        if self._exits_when_unused and not self._connections:
            self._unused_timer = threading.Timer(self._config.service.unused_exit_s, self._stop_unused)
            self._unused_timer.daemon = True
            self._unused_timer.start()

    def _stop_unused(self) -> None:
        logger.info("no stub was connected for %g s", self._config.service.unused_exit_s)
        os.kill(os.getpid(), signal.SIGTERM)  # also ends the loading, which only a signal can

    def _flush_metrics(self, runtime: Runtime) -> None:
        """Send the measurements to one stub that wants them; ends with the engine."""
        while not self._stop.wait(self._config.service.metrics_flush_s):
            with self._lock:
                connection = next((c for c in self._connections if c.wants_metrics), None)
            if connection is not None:
                try:
                    self._flush_metrics_to(connection, runtime.engine)
                except Exception as error:
                    logger.error("metrics were not sent: %s", error, exc_info=error)

    def _flush_metrics_to(self, connection: Connection, engine: EngineLike) -> None:
        self._metrics.honours_plans(engine.honours_plans)
        engine.post(Inspect(lambda scheduler: self._metrics.scheduler(scheduler.stats())))
        connection.send(self._metrics.drain())

    # --- connections --------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        is_open = True
        for index in itertools.count(1):
            try:
                is_open = self._accept_next(index)
            except (OSError, RuntimeError) as error:
                logger.error("a connection was not taken: %s", error)
                is_open = not self._stop.wait(_ACCEPT_PAUSE_S)  # once it stops, nobody need come any more
            if not is_open:
                return

    def _accept_next(self, index: int) -> bool:
        """Serve the next connection in a thread of its own; return False when there will be none."""
        if (sock := self._listener.accept()) is None:
            return False
        connection = Connection(sock, index, self._config.service.max_unsent_bytes)
        try:
            threading.Thread(target=self._serve, args=(connection,), name=f"read-{index}", daemon=True).start()
        except RuntimeError:
            sock.close()
            raise
        return True

    def _serve(self, connection: Connection) -> None:
        """Read one stub's messages until it is gone, then cancel what it left."""
        try:
            with engine_reader(connection.socket) as reader:
                self._read(connection, reader)
        except (OSError, ProtocolError) as error:
            logger.warning("connection of %s broke: %s", connection.name, error)
        except Exception as error:
            logger.error("connection of %s failed: %s", connection.name, error, exc_info=error)
        finally:
            with self._lock:
                self._connections.pop(connection, None)
                self._watch_use()
            connection.close()
            if self._intake is not None and self._outbox is not None:
                self._intake.drop(connection)
                self._outbox.drop(connection)
            self._prefixes.drop(connection)
            connection.socket.close()

    def _read(self, connection: Connection, reader: Reader[ToEngine]) -> None:
        hello = reader.read()
        if hello is None:
            return
        if not isinstance(hello, Hello) or hello.version != VERSION:
            raise ProtocolError(f"expected Hello of version {VERSION}, got {hello}")
        connection.name, connection.wants_metrics = hello.name, hello.wants_metrics
        if hello.server_pid is not None:
            watch_stub(connection.socket, hello.server_pid)
        with self._lock:
            self._connections[connection] = None
            self._watch_use()
            connection.send(self._state)
            is_late = self._is_closed
        if is_late:
            connection.flush(timeout_s=1.0)
            return
        for message in reader:
            if isinstance(message, Hello):
                raise ProtocolError("a second Hello")
            try:
                self._take(connection, message)
            except Exception as error:
                logger.error("a message of %s was not served: %s", connection.name, error, exc_info=error)

    def _take(self, connection: Connection, message: ToEngine) -> None:
        match message:
            case SubmitMessage():
                self._submit(connection, message)
            case CancelMessage(handle, client_id, timed_out) if self._intake is not None:
                self._intake.cancel(connection, handle, client_id, timed_out=timed_out)
            case Refused(priority_class, error_code):
                self._metrics.refused(priority_class, error_code)
            case Snapshot(handle, names_requests):
                self._inspection.ask(connection, handle, self._engine, names_requests=names_requests)
            case WatchPrefixes():
                self._watch_prefixes(connection)

    def _submit(self, connection: Connection, message: SubmitMessage) -> None:
        if self._state.stage is Stage.READY and self._intake is not None:
            self._intake.submit(connection, message)
            return
        error = EngineUnavailableError(f"the engine is {self._state.stage.value}")
        refuse(connection, message, error, self._metrics)
