"""The stub side: Triton's Python model as a thin client of the engine process. Needs numpy and msgspec, no torch.

    execute (Triton's thread)  checks a request, hands it to the link, returns: the answer comes later
    link thread                one response for each chunk; the only thread that sends tokens
    timer thread               asks Triton which clients have gone; flushes metrics

Every request has one `_Reply`: a lock and a closed flag around Triton's response sender. A sender that is asked
anything after its final flag ends the whole server (2.51, and still so in the newest sources).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from backend.config import load_config
from backend.core.errors import BrosError, InvalidRequestError, RequestCancelledError, to_bros_error
from backend.link.engine_link import EngineLink, Ticket
from backend.link.validate import MAX_PARAMETERS, MAX_SAMPLING_BYTES, Defaults, validate, wants_snapshot
from backend.stub.strings import count_keys, decode_strings
from backend.stub.triton_metrics import TritonMetrics
from backend.wire import names as wire
from backend.wire.protocol import Chunk, End, EngineState, Generation, Metrics, Sample, Timings, error_end

logger = logging.getLogger(__name__)

_MAX_KEPT_TOKENS = 2048  # whose tensors lie in shared memory already: to send them again takes half the time
_MAX_KEPT_CHARS = 64  # of the text of such a token, which may have an echoed prompt in front
_JSON_CHARS_PER_BYTE = 6  # \u00ff; a prompt may come as a parameter
_UNCOUNTED_CHARS = 64 * 1024  # of JSON, which is decoded in a few milliseconds whatever it holds
_SHOWN_BYTES = 40  # in front of a byte that is no text
_MAX_ID_CHARS = 256  # of the client's own request id, which is for people
# Of the timer's time. An answer takes 0.1 ms. With 3,000 open requests, asking for all at each poll took half of the
# stub's processor time (two EPYC cores).
_ASKING_SHARE = 0.2
_MAX_METRICS_WAITING = 60  # flushes; older ones are dropped when the timer cannot keep up


class TritonPythonModel:
    """One of the models `bros`, `bros_rt` and `bros_be`; which one stands in its config.pbtxt."""

    def initialize(self, args: dict[str, str]) -> None:
        """Connect to the engine and wait until it is ready. Raises an error, and so fails the model, when it fails."""
        _check_numpy()
        _log_to_triton()
        file = load_config(model_directory=Path(args["model_repository"]))
        name = args["model_name"]
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._service = file.config.service
        self._defaults = Defaults(name, parameters[wire.MODEL_CLASS], self._service)
        pb_utils.deserialize_bytes_tensor = partial(decode_strings, max(1, self._service.max_stop_words))
        max_inflight = int(parameters[wire.MODEL_MAX_INFLIGHT])
        self._inflight = threading.Semaphore(max_inflight) if max_inflight else None
        reports_metrics = parameters[wire.MODEL_REPORTS_METRICS] == "true"
        self._metrics = TritonMetrics(pb_utils.MetricFamily) if reports_metrics else None
        self._measured: deque[Metrics] = deque(maxlen=_MAX_METRICS_WAITING)
        self._token_tensors = lru_cache(_MAX_KEPT_TOKENS)(_output_tensors)
        self._replies: dict[_Reply, None] = {}
        self._to_ask: deque[_Reply] = deque()  # whose clients may have gone
        self._is_closing = threading.Event()
        self._server_pid = os.getppid()
        self._link = EngineLink(file, name, self._measured.append if reports_metrics else None, self._server_pid)
        self._link.wait_until_ready(_log_state)
        self._timer = threading.Thread(target=self._run_timer, name="timer", daemon=True)
        self._timer.start()

    def is_ready(self) -> bool:
        """Tell Triton whether requests can be served; asked by servers from 26.03 on."""
        return self._link.is_ready

    def execute(self, requests: list[Any]) -> None:
        """Take requests in; each is answered, or refused, by its own response sender."""
        for request in requests:
            try:
                self._serve(request, _Reply(request.get_response_sender()))
            except Exception:
                logger.exception("a request cannot be answered")

    def finalize(self) -> None:
        """Disconnect; Triton calls this when no request is open."""
        self._is_closing.set()
        self._timer.join()
        self._link.close()
        self._token_tensors.cache_clear()  # the shared memory they lie in ends before this interpreter does

    def _serve(self, request: Any, reply: _Reply) -> None:
        try:
            self._take(request, reply)
        except Exception as error:
            self._refuse(reply, to_bros_error(error, "a request failed on its way in"))

    def _refuse(self, reply: _Reply, error: BrosError) -> None:
        self._link.note_refusal(self._defaults.usual_class, error)
        self._close(reply, Chunk(0, end=error_end(error)))

    def _take(self, request: Any, reply: _Reply) -> None:
        parameters = self._parameters(request)
        if parameters.get(wire.INSPECT) == wire.INSPECT_STUB:
            self._close(reply, Chunk(0, "alive", end=End(finish_reason="stop")))
            return
        if wants_snapshot(parameters, self._service):
            names_requests = parameters[wire.INSPECT] == wire.INSPECT_ENGINE
            self._link.inspect(lambda chunk: self._put(reply, chunk), names_requests=names_requests)
            return
        _check_id(request)
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        reply.generation = validate(inputs, parameters, request.timeout(), self._defaults, self._link.max_seq_len)
        if self._inflight is not None:
            self._inflight.acquire()  # Triton's queue, with its limits, holds the rest meanwhile
            reply.is_inflight = True
        if reply.is_cancelled():
            raise RequestCancelledError("the client went away before the request began")
        self._replies[reply] = None
        client_id = _read_text("request id", request.request_id)
        reply.ticket = self._link.submit(client_id, reply.generation, lambda chunk: self._put(reply, chunk))

    def _parameters(self, request: Any) -> dict[str, object]:
        text = _read_text("parameters", request.parameters)
        max_chars = _JSON_CHARS_PER_BYTE * self._service.max_prompt_bytes + MAX_SAMPLING_BYTES
        if len(text) > max_chars:
            raise InvalidRequestError(f"parameters: {len(text)} characters of JSON exceed {max_chars}")
        if len(text) > _UNCOUNTED_CHARS and (num_keys := count_keys(text)) > MAX_PARAMETERS:
            raise InvalidRequestError(f"parameters: {num_keys} exceed {MAX_PARAMETERS}")
        parameters: dict[str, object] = json.loads(text)
        return parameters

    def _put(self, reply: _Reply, chunk: Chunk) -> None:
        if chunk.end is None:
            reply.send(self._response(chunk, reply.generation))
        else:
            self._close(reply, chunk)

    def _close(self, reply: _Reply, chunk: Chunk) -> None:
        self._replies.pop(reply, None)
        try:
            reply.close(lambda: self._response(chunk, reply.generation))
        finally:
            if reply.is_inflight and self._inflight is not None:
                self._inflight.release()

    def _response(self, chunk: Chunk, generation: Generation | None) -> Any:
        end = chunk.end
        if end is not None and end.error_code is not None:
            status = getattr(pb_utils.TritonError, end.error_status)
            error = pb_utils.TritonError(f"{end.error_code}: {end.error_message}", status)
            return pb_utils.InferenceResponse(error=error)
        is_one_token = len(chunk.token_ids) == 1 and len(chunk.text) <= _MAX_KEPT_CHARS
        tensors = (self._token_tensors if is_one_token else _output_tensors)(chunk.text, chunk.token_ids)
        return pb_utils.InferenceResponse([*tensors, *_further_tensors(chunk, generation)])

    # --- the timer's thread -------------------------------------------------------------------------------------

    def _run_timer(self) -> None:
        now_s = next_flush_s = time.monotonic()
        next_poll_s = now_s + self._service.cancel_poll_s
        while not self._is_closing.wait(max(0.0, next_poll_s - now_s)) and os.getppid() == self._server_pid:
            now_s = time.monotonic()
            next_poll_s = now_s + self._service.cancel_poll_s  # from the start: asking takes time, too
            try:
                self._cancel_late(now_s)
                self._cancel_abandoned(now_s + _ASKING_SHARE * self._service.cancel_poll_s)
            except Exception:
                logger.exception("requests could not be cancelled")
            if self._metrics is not None and now_s >= next_flush_s:
                next_flush_s = now_s + self._service.metrics_flush_s
                self._flush_metrics(self._metrics)
            now_s = time.monotonic()

    def _cancel_late(self, now_s: float) -> None:
        for reply in list(self._replies):
            if now_s >= reply.give_up_s:
                self._cancel(reply, timed_out=True)

    def _cancel_abandoned(self, give_up_s: float) -> None:
        """Ask Triton whose clients have gone, until `give_up_s`: one at least, and further ones the next time."""
        if not self._to_ask:
            self._to_ask.extend(list(self._replies))
        while self._to_ask:
            reply = self._to_ask.popleft()
            try:
                if reply.ticket is not None and not reply.is_cancelling and reply.is_cancelled():
                    self._cancel(reply, timed_out=False)
            except Exception:
                logger.exception("whether a client has gone is not known")
            if time.monotonic() >= give_up_s:
                return

    def _cancel(self, reply: _Reply, timed_out: bool) -> None:
        if reply.ticket is not None and not reply.is_cancelling:
            reply.is_cancelling = True
            self._link.cancel(reply.ticket, timed_out=timed_out)

    def _flush_metrics(self, metrics: TritonMetrics) -> None:
        ready = Sample("bros_engine_ready", {}, float(self._link.is_ready))
        try:
            metrics.flush(Metrics((ready,)))
            while self._measured:
                metrics.flush(self._measured.popleft())
        except Exception:
            logger.exception("metrics could not be flushed")


def _check_id(request: Any) -> None:
    """Refuse a long id: Triton copies it into every response."""
    if (num_chars := len(_read_text("request id", request.request_id))) > _MAX_ID_CHARS:
        raise InvalidRequestError(f"request id: {num_chars} characters exceed {_MAX_ID_CHARS}")


def _read_text(name: str, read: Callable[[], str]) -> str:
    """Return what Triton hands out as text. A client's bytes need not be text. The error shows the name or value
    first, then the position."""
    try:
        return read()
    except UnicodeDecodeError as error:
        before = error.object[max(0, error.start - _SHOWN_BYTES) : error.start].decode(errors="replace")
        raise InvalidRequestError(f"{name}: invalid UTF-8 at byte {error.start}, after {before!r}") from error


class _Reply:
    """The way back to one client; threads meet here, and the final flag is sent exactly once."""

    def __init__(self, sender: Any) -> None:
        self.generation: Generation | None = None  # None until the request is found good
        self.ticket: Ticket | None = None  # None until the engine has it
        self.is_inflight = False
        self.is_cancelling = False
        self._sender = sender
        self._arrival_s = time.monotonic()
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def give_up_s(self) -> float:
        """When the request's own timeout runs out."""
        timeout_s = None if self.generation is None else self.generation.timeout_s
        return float("inf") if timeout_s is None else self._arrival_s + timeout_s

    def send(self, response: Any) -> None:
        """Send a response that is not the last. Raises what Triton does, for want of shared memory say."""
        with self._lock:
            assert not self._is_closed, "a chunk came after the end"
            self._sender.send(response)

    def close(self, make_response: Callable[[], Any]) -> None:
        """Send the last response; where that fails an error, or at least the mark of the end it waits for."""
        with self._lock:
            assert not self._is_closed, "an end came after the end"
            self._is_closed = True
            for make in (make_response, _lost_response, None):
                try:
                    self._sender.send(make and make(), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                except Exception:
                    logger.exception("a last response was not sent")
                else:
                    return

    def is_cancelled(self) -> bool:
        """Ask Triton whether the client has gone; never after the end."""
        with self._lock:
            return not self._is_closed and bool(self._sender.is_cancelled())


def _lost_response() -> Any:
    error = pb_utils.TritonError("INTERNAL: the last response could not be sent", pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=error)


def _output_tensors(text: str, token_ids: tuple[int, ...]) -> tuple[Any, Any]:
    return _tensor("text_output", [text.encode()], np.object_), _tensor("output_ids", token_ids, np.int32)


def _further_tensors(chunk: Chunk, generation: Generation | None) -> list[Any]:
    end = chunk.end
    tensors = [] if chunk.log_probs is None else [_tensor("log_probs", chunk.log_probs, np.float32)]
    if chunk.top_ids:
        tensors += [
            _tensor("top_ids", chunk.top_ids, np.int32),
            _tensor("top_log_probs", chunk.top_log_probs, np.float32),
        ]
    if end is not None and end.finish_reason is not None:
        tensors.append(_tensor("finish_reason", [end.finish_reason.encode()], np.object_))
        if end.timings is not None and generation is not None:
            tensors += _metric_tensors(end.timings, generation)
    return tensors


def _metric_tensors(timings: Timings, generation: Generation) -> list[Any]:
    every = generation.wants_metrics
    wanted = {
        "ttft_ms": (every, timings.ttft_s),
        "tpot_ms": (every, timings.tpot_s),
        "queue_ms": (every, timings.queue_s),
    }
    tensors = [
        _tensor(name, [seconds * 1e3], np.float32)
        for name, (is_wanted, seconds) in wanted.items()
        if is_wanted and seconds is not None
    ]
    counts = {
        "num_preemptions": (every, timings.num_preemptions),
        "num_input_tokens": (every or generation.wants_num_input_tokens, timings.num_input_tokens),
        "num_output_tokens": (every or generation.wants_num_output_tokens, timings.num_output_tokens),
        "num_cached_tokens": (every, timings.num_cached_tokens),
    }
    tensors += [_tensor(name, [count], np.int32) for name, (is_wanted, count) in counts.items() if is_wanted]
    return tensors + ([_tensor("hopeless_slo", [timings.has_hopeless_slo], np.bool_)] if every else [])


def _tensor(name: str, values: Any, dtype: type[Any]) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=dtype))


def _check_numpy() -> None:
    """Refuse NumPy 2 where it would kill the stub at the first string: in servers before 24.12 (pybind11 2.10)."""
    is_old_server = not hasattr(pb_utils.InferenceResponse, "parameters")  # came with 25.02
    if is_old_server and int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(f"numpy {np.__version__} does not work with this Triton server: install numpy<2")


def _log_state(state: EngineState) -> None:
    percent = "" if state.fraction is None else f" {state.fraction:.0%}"
    logger.info("engine %s%s %s", state.stage.value, percent, state.detail)


def _log_to_triton() -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = [_TritonHandler()]


class _TritonHandler(logging.Handler):
    """Hands Python's log records to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            log = pb_utils.Logger.log_error
        elif record.levelno >= logging.WARNING:
            log = pb_utils.Logger.log_warn
        else:
            log = pb_utils.Logger.log_info if record.levelno >= logging.INFO else pb_utils.Logger.log_verbose
        log(self.format(record))
