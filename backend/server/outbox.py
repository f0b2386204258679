"""The outbox: tokens that leave the engine become text and travel to the stubs, all of a step in one message.

The engine's thread only queues a step's output (`Outbox.emit`). The outbox thread detokenises, cuts at stop words,
holds tokens together for a moment where their class may wait, and hands every connection one message. Every stream that
was opened ends exactly once: whoever takes it out of the table sends its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from backend.core.errors import BrosError, RequestCancelledError, to_bros_error
from backend.core.plan import RankedLogProb, StepOutput
from backend.core.request import FinishReason, PriorityClass, Request, RequestId
from backend.server.connection import Connection
from backend.server.intake import PromptTokenizer
from backend.server.metrics import Recorder
from backend.text.tokenizer import IncrementalDetokenizer, StopStrings
from backend.wire.protocol import Chunk, Chunks, End, Generation, Timings, error_end

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Stream:
    """The way back of one request; owned by the outbox thread once it is open."""

    handle: int
    connection: Connection
    generation: Generation
    request: Request
    detokenizer: IncrementalDetokenizer
    stop_strings: StopStrings
    timed_out: bool = False  # its own timeout ends it: the client gets an error
    text: str = ""  # not sent yet, as the next three
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[tuple[int, float]] = field(default_factory=list)
    num_tokens: int = 0
    last_token_s: float | None = None
    last_sent_s: float = float("-inf")

    def due_s(self, coalesce_s: Mapping[PriorityClass, float]) -> float:
        """Return when to send the open chunk: not too soon after the last one."""
        return self.last_sent_s + coalesce_s[self.request.priority_class]

    def take_chunk(self, end: End | None = None) -> Chunk:
        """Return the unsent tokens as a chunk, and forget them."""
        log_probs = tuple(self.log_probs) if self.generation.wants_log_probs else None
        top_ids, top_log_probs = zip(*self.top, strict=True) if self.top else ((), ())
        chunk = Chunk(self.handle, self.text, tuple(self.token_ids), log_probs, end, top_ids, top_log_probs)
        self.text = ""
        self.token_ids.clear()
        self.log_probs.clear()
        self.top.clear()
        return chunk

    def timings(self) -> Timings:
        """Return the times and counts of the request so far."""
        request = self.request
        first_s, last_s = request.first_token_s, self.last_token_s
        has_tpot = first_s is not None and last_s is not None and self.num_tokens > 1
        return Timings(
            queue_s=_since(request.arrival_s, request.first_scheduled_s),
            ttft_s=_since(request.arrival_s, first_s) if self.num_tokens else None,
            tpot_s=(last_s - first_s) / (self.num_tokens - 1) if has_tpot else None,  # type: ignore[operator]  # has_tpot
            num_preemptions=request.num_preemptions,
            num_input_tokens=request.num_prompt,
            num_output_tokens=self.num_tokens,
            num_cached_tokens=request.num_cached,
            has_hopeless_slo=request.is_hopeless,
        )


def _since(start_s: float, moment_s: float | None) -> float | None:
    return None if moment_s is None else max(0.0, moment_s - start_s)


class Outbox:
    """Carries step outputs to connections. `cancel` is called with the id of a request that must not go on."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        coalesce_s: Mapping[PriorityClass, float],
        metrics: Recorder,
        cancel: Callable[[RequestId], None],
    ) -> None:
        self._cancel = cancel
        self._tokenizer = tokenizer
        self._coalesce_s = coalesce_s
        self._metrics = metrics
        self._streams: dict[RequestId, Stream] = {}
        self._has_changed = threading.Condition()  # guards the table of streams
        self._outputs: deque[tuple[float, StepOutput]] = deque()
        self._is_closing = False
        self._wake = threading.Condition()  # guards the two above
        self._unsent: dict[
            Stream, None
        ] = {}  # streamed ones with something to send; the outbox thread's own, as the next
        self._chunks: dict[Connection, list[Chunk]] = {}
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def open(self, handle: int, connection: Connection, generation: Generation, request: Request, echo: str) -> None:
        """Open the way back of `request`, before the engine sees it. `echo` stands in front of the output."""
        stream = Stream(
            handle=handle,
            connection=connection,
            generation=generation,
            request=request,
            detokenizer=IncrementalDetokenizer(self._tokenizer, self._follows_text(generation, request)),
            stop_strings=StopStrings(generation.stop_words),
            text=echo,
        )
        with self._has_changed:
            self._streams[request.request_id] = stream

    def emit(self, output: StepOutput) -> None:
        """Take a step's output; called on the engine's thread, never blocks."""
        with self._wake:
            self._outputs.append((time.monotonic(), output))
            self._wake.notify()

    def fail(self, request_id: RequestId, error: BrosError) -> None:
        """End a stream with an error, from any thread; ignored when it has ended."""
        if (stream := self._remove(request_id)) is not None:
            stream.connection.send(Chunks((self._failed(stream, error),)))

    def mark_timed_out(self, request_id: RequestId) -> None:
        """Let the coming cancellation of a request be an error that says so; ignored when it has ended."""
        with self._has_changed:
            if (stream := self._streams.get(request_id)) is not None:
                stream.timed_out = True

    def drop(self, connection: Connection) -> None:
        """Forget the streams of a connection that is gone, and cancel their requests."""
        with self._has_changed:
            gone = [request_id for request_id, stream in self._streams.items() if stream.connection is connection]
        for request_id in gone:
            if (stream := self._remove(request_id)) is not None:
                self._metrics.end(stream.request, stream.timings(), "cancelled")
                self._cancel(request_id)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no stream is open; return False when that takes longer than `timeout_s`."""
        with self._has_changed:
            return self._has_changed.wait_for(lambda: not self._streams, timeout_s)

    def close(self) -> None:
        """Carry away what has been emitted, then end the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _remove(self, request_id: RequestId) -> Stream | None:
        with self._has_changed:
            stream = self._streams.pop(request_id, None)
            if not self._streams:
                self._has_changed.notify_all()
        return stream

    def _follows_text(self, generation: Generation, request: Request) -> bool:
        """Return whether an answer goes on with the text of its prompt. That to messages does where it repeats them."""
        is_alone = generation.messages is not None and not generation.echoes_prompt
        return not is_alone and any(map(self._tokenizer.token_bytes, request.prompt_token_ids))

    # --- the outbox thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            with self._wake:
                self._wake.wait_for(lambda: self._outputs or self._is_closing, self._wait_s())
                outputs, is_closing = list(self._outputs), self._is_closing
                self._outputs.clear()
            try:
                for now_s, output in outputs:
                    self._collect(now_s, output)
                self._send_due(time.monotonic())
            except Exception as error:  # of none of the requests: theirs are caught one by one
                logger.error("the outbox failed: %s", error, exc_info=error)

    def _wait_s(self) -> float | None:
        due_s = min((stream.due_s(self._coalesce_s) for stream in self._unsent), default=None)
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def _collect(self, now_s: float, output: StepOutput) -> None:
        for request, token_id, log_prob in output.tokens:
            if (stream := self._streams.get(request.request_id)) is not None:
                try:
                    self._add(stream, token_id, log_prob, now_s)
                except Exception as error:
                    self._break(stream, error)
        for request in output.finished:
            if (stream := self._remove(request.request_id)) is not None:
                self._end(stream, self._finished_or_failed(stream))
        for failed in output.failed:
            if (stream := self._remove(failed.request.request_id)) is not None:
                self._end(stream, self._failed(stream, failed.error))

    def _add(self, stream: Stream, token_id: int, log_prob: float | None, now_s: float) -> None:
        self._metrics.token(stream.request, None if stream.last_token_s is None else now_s - stream.last_token_s)
        stream.num_tokens += 1
        stream.last_token_s = now_s
        stream.token_ids.append(token_id)
        if log_prob is not None:
            stream.log_probs.append(float(log_prob))  # the wire knows no other kind
            if isinstance(log_prob, RankedLogProb):
                stream.top += log_prob.top
        is_stoppable = stream.num_tokens >= stream.generation.sampling.min_tokens
        ends = is_stoppable and token_id in stream.request.sampling.stop_token_ids
        text = "" if ends else stream.detokenizer.push((token_id,))  # as a stop word, it is no part of the text
        stream.text += stream.stop_strings.push(text, may_match=is_stoppable)
        if stream.generation.is_streamed:
            self._unsent[stream] = None
        if stream.stop_strings.matched is not None and self._remove(stream.request.request_id) is not None:
            self._cancel(stream.request.request_id)
            self._end(stream, self._chunk_of_end(stream, FinishReason.STOP))

    def _break(self, stream: Stream, error: Exception) -> None:
        """End a stream whose tokens cannot be put into words."""
        if self._remove(stream.request.request_id) is not None:
            self._cancel(stream.request.request_id)
            self._end(stream, self._failed(stream, to_bros_error(error, "an answer failed on its way out")))

    def _finished_or_failed(self, stream: Stream) -> Chunk:
        try:
            return self._finished(stream)
        except Exception as error:
            return self._failed(stream, to_bros_error(error, "an answer failed at its end"))

    def _finished(self, stream: Stream) -> Chunk:
        if stream.timed_out and stream.request.finish_reason is FinishReason.CANCELLED:
            return self._failed(stream, timeout_error(stream.generation))
        assert stream.request.finish_reason is not None, f"request {stream.request.request_id!r} ended without a reason"
        stream.text += stream.stop_strings.push(stream.detokenizer.flush()) + stream.stop_strings.flush()
        has_stopped = stream.stop_strings.matched is not None  # by U+FFFD, which half a character has just become
        return self._chunk_of_end(stream, FinishReason.STOP if has_stopped else stream.request.finish_reason)

    def _chunk_of_end(self, stream: Stream, reason: FinishReason) -> Chunk:
        timings = stream.timings()
        self._metrics.end(stream.request, timings, reason.value)
        return stream.take_chunk(End(finish_reason=reason.value, timings=timings))

    def _failed(self, stream: Stream, error: BrosError) -> Chunk:
        """Called by the thread that removed the stream."""
        self._metrics.end(stream.request, stream.timings(), error.code.lower())
        return Chunk(stream.handle, end=error_end(error))

    def _end(self, stream: Stream, chunk: Chunk) -> None:
        self._unsent.pop(stream, None)
        self._chunks.setdefault(stream.connection, []).append(chunk)

    def _send_due(self, now_s: float) -> None:
        for stream in [stream for stream in self._unsent if stream.due_s(self._coalesce_s) <= now_s]:
            del self._unsent[stream]
            if stream.text or stream.token_ids:
                stream.last_sent_s = now_s
                self._chunks.setdefault(stream.connection, []).append(stream.take_chunk())
        all_chunks, self._chunks = self._chunks, {}
        for connection, chunks in all_chunks.items():
            self._send(connection, chunks)

    def _send(self, connection: Connection, chunks: list[Chunk]) -> None:
        """Send chunks in one message, or one by one where together they make none: then only the wrong one fails."""
        try:
            connection.send(Chunks(tuple(chunks)))
        except Exception as error:
            if len(chunks) > 1:
                for chunk in chunks:
                    self._send(connection, [chunk])
            else:
                self._replace(connection, chunks[0], to_bros_error(error, "an answer was not sent"))

    def _replace(self, connection: Connection, chunk: Chunk, error: BrosError) -> None:
        """End the request of a chunk that cannot be sent."""
        handle = chunk.handle
        streams = [s for s in self._streams.values() if s.connection is connection and s.handle == handle]
        for stream in streams:
            self._remove(stream.request.request_id)
            self._unsent.pop(stream, None)
            self._cancel(stream.request.request_id)
        connection.send(Chunks((Chunk(handle, end=error_end(error)),)))


def timeout_error(generation: Generation) -> RequestCancelledError:
    """Return the error of a request whose own timeout ran out."""
    return RequestCancelledError(f"the request's timeout of {(generation.timeout_s or 0.0) * 1e3:g} ms ran out")
