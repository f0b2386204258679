"""The socket server around an engine: what the engine process is, once it has its socket.

    stub ══ socket ══► reader threads ──Submit, Cancel──► engine thread ──StepOutput──► outbox thread ══ socket ══► stub
                       check, tokenise                    Engine.run                    text, stop words

Stubs and launchers are served before the model is loaded, so that they can follow the loading.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from backend.config import ConfigFile
from backend.connection import Connection
from backend.engine import Cancel, Engine, Inspect, Submit
from backend.errors import BrosError, ConfigError, EngineUnavailableError, InvalidRequestError
from backend.intake import Intake
from backend.introspect import StepLog, snapshot_json
from backend.metrics import Recorder
from backend.orphans import watch_stub
from backend.outbox import Outbox
from backend.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.protocol import (
    VERSION,
    Chunk,
    Chunks,
    End,
    EngineState,
    Hello,
    ProtocolError,
    Reader,
    Refused,
    Snapshot,
    Stage,
    ToEngine,
    engine_reader,
    error_end,
)
from backend.protocol import Cancel as CancelMessage
from backend.protocol import Submit as SubmitMessage
from backend.request import FinishReason
from backend.runtime import EngineLike, Progress, Runtime, load_runtime, make_tokenizer
from backend.scheduler import Scheduler
from backend.step_file import StepFile

logger = logging.getLogger(__name__)

_FAILED_EXIT_S = 2.0  # stubs look for an engine at least as often (engine_link)
_JOIN_TIMEOUT_S = 10.0  # a step that takes longer than this is not waited for at the end


class EngineServer:
    """The socket server around an engine. `run` is called on the main thread; `request_stop` from any other."""

    def __init__(self, file: ConfigFile, listener: socket.socket, exits_when_unused: bool) -> None:
        self._config = file.config
        self._listener = listener
        self._state = EngineState(Stage.LOADING, "starting")
        self._metrics = Recorder()
        self._steps = StepLog()
        self._step_file: StepFile | None = None
        self._connections: dict[Connection, None] = {}
        self._is_closed = False
        self._lock = threading.Lock()  # guards state, connections and is_closed; held while a state is sent to all
        self._exits_when_unused = exits_when_unused
        self._unused_timer: threading.Timer | None = None
        self._stop = threading.Event()
        self._intake: Intake | None = None
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
        outbox = Outbox(tokenizer, service.coalesce_s, self._metrics)
        if service.step_file is not None:  # here, where this process has the socket: another's file stays as it is
            self._step_file = StepFile(Path(service.step_file))
        runtime = load_runtime(self._config, tokenizer, outbox.emit, self._record, on_progress)
        outbox.cancel = lambda request_id: runtime.engine.post(Cancel(request_id))
        self._intake = Intake(tokenizer, service, runtime.max_seq_len)
        self._outbox, self._engine = outbox, runtime.engine
        return runtime, outbox

    def _tell_failure(self, why: str) -> None:
        """Say that nothing could be loaded, also to stubs that are about to connect: they would start another engine,
        and never fail. A launcher sees its engine end."""
        self._set_state(Stage.FAILED, why)
        if self._exits_when_unused:
            self._stop.wait(_FAILED_EXIT_S)

    def _serve_until_stopped(self, runtime: Runtime, outbox: Outbox, thread: threading.Thread) -> None:
        threading.Thread(target=self._flush_metrics, args=(runtime,), name="metrics", daemon=True).start()
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
        gc.collect()
        gc.freeze()  # the model's objects outlive every step: collections that walk them would stretch steps
        try:
            engine.run()
        finally:
            self._stop.set()

    def _drain(self, engine: EngineLike, outbox: Outbox) -> None:
        if engine.error is None:
            self._set_state(Stage.DRAINING)
            if not outbox.wait_until_idle(self._config.service.drain_timeout_s):
                logger.warning("requests were still open after %g s: they fail", self._config.service.drain_timeout_s)
        else:
            self._set_state(Stage.FAILED, f"the engine stopped: {engine.error}")
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
            self._state = EngineState(stage, detail, fraction)
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
        """Send what was measured to one stub that wants it; ends with the engine."""
        while not self._stop.wait(self._config.service.metrics_flush_s):
            with self._lock:
                connection = next((c for c in self._connections if c.wants_metrics), None)
            if connection is not None:
                self._metrics.honours_plans(runtime.engine.honours_plans)
                runtime.engine.post(Inspect(lambda scheduler: self._metrics.scheduler(scheduler.stats())))
                connection.send(self._metrics.drain())

    # --- connections --------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for index in itertools.count(1):
            try:
                sock, _ = self._listener.accept()
            except OSError:  # the listener was closed: this process ends
                return
            connection = Connection(sock, index, self._config.service.max_unsent_bytes)
            threading.Thread(target=self._serve, args=(connection,), name=f"read-{index}", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """Read one stub's messages until it is gone, then cancel what it left."""
        try:
            with engine_reader(connection.socket) as reader:
                self._read(connection, reader)
        except (OSError, ProtocolError) as error:
            logger.warning("connection of %s broke: %s", connection.name, error)
        finally:
            with self._lock:
                self._connections.pop(connection, None)
                self._watch_use()
            connection.close()
            if self._outbox is not None:
                self._outbox.drop(connection)
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
            match message:
                case SubmitMessage():
                    self._submit(connection, message)
                case CancelMessage(handle, client_id, timed_out):
                    self._cancel(connection, handle, client_id, timed_out)
                case Refused(priority_class, error_code):
                    self._metrics.refused(priority_class, error_code)
                case Snapshot(handle):
                    self._inspect(connection, handle)
                case Hello():
                    raise ProtocolError("a second Hello")

    def _submit(self, connection: Connection, message: SubmitMessage) -> None:
        request_id = connection.request_id(message.handle, message.client_id)
        try:
            if self._state.stage is not Stage.READY or self._engine is None or self._intake is None:
                raise EngineUnavailableError(f"the engine is {self._state.stage.value}")
            request = self._intake.request(message, request_id)
            echo = self._intake.prompt_text(message.generation, request) if message.generation.echoes_prompt else ""
        except BrosError as error:
            self._metrics.refused(message.generation.priority_class, error.code)
            connection.send(Chunks((Chunk(message.handle, end=error_end(error)),)))
            return
        assert self._outbox is not None, "an engine without an outbox"
        self._outbox.open(message.handle, connection, message.generation, request, echo)
        try:
            self._engine.post(Submit(request))
        except BrosError as error:
            self._outbox.fail(request_id, error)

    def _cancel(self, connection: Connection, handle: int, client_id: str, timed_out: bool) -> None:
        if self._engine is None or self._outbox is None:
            return
        request_id = connection.request_id(handle, client_id)
        if timed_out:
            self._outbox.mark_timed_out(request_id)
        self._engine.post(Cancel(request_id))

    def _inspect(self, connection: Connection, handle: int) -> None:
        """Answer with the engine's state as it is between two steps."""

        def look(scheduler: Scheduler) -> None:
            text = snapshot_json(scheduler, self._steps, time.monotonic())
            connection.send(Chunks((Chunk(handle, text, end=End(finish_reason=FinishReason.STOP.value)),)))

        try:
            if self._engine is None:
                raise EngineUnavailableError(f"the engine is {self._state.stage.value}")
            if not isinstance(self._engine, Engine):
                raise InvalidRequestError("inspect: this executor keeps the KV cache and its requests to itself")
            self._engine.post(Inspect(look))
        except BrosError as error:
            connection.send(Chunks((Chunk(handle, end=error_end(error)),)))
