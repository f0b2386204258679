"""A stream as OpenAI sends it: server-sent events, the last of which is `[DONE]`.

    role ─► text ─► … ─► finish_reason ─► usage (where asked for) ─► [DONE]

An error after the first event is an event of its own, and ends the stream: its status has been sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import msgspec

from client.generation import Chunk
from client.openai.asked import Json
from client.openai.chat import CALLED, calls_piece
from client.openai.errors import ApiError
from client.openai.job import Job
from client.openai.tools import Reader
from client.openai.usage import Tally
from front.engine import Part
from front.failures import note

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


async def events(job: Job, first: Part, rest: AsyncGenerator[Part, None]) -> AsyncIterator[bytes]:
    """Yield the events of an answer whose `first` part has come. Closed, it closes `rest`."""
    writer = Writer(job)
    async with aclosing(rest):
        if event := writer.part(*first):
            yield event
        try:
            async for choice, chunk in rest:
                if event := writer.part(choice, chunk):
                    yield event
        except Exception as error:
            told = error if isinstance(error, ApiError) else note(f"stream {job.request_id}", error)
            yield _event(told.body)
            return
        yield writer.end()


class Writer:
    """Writes the parts of one answer as events."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._head = job.head(job.endpoint.piece_name)
        self._tally = Tally(job.asked)
        self._opened: set[int] = set()
        self._readers: dict[int, Reader] = {}

    def part(self, choice: int, chunk: Chunk) -> bytes:
        """Return the events of a part: none, for one that says nothing yet."""
        self._tally.add(choice, chunk)
        events = [self._opening(choice)] if choice not in self._opened else []
        chunk, calls = self._read(choice, chunk)
        if chunk.text or chunk.log_probs:
            events.append(
                self._piece(choice, chunk if chunk.finish_reason is None else replace(chunk, finish_reason=None))
            )
        elif self._job.asked.continues_usage and chunk.finish_reason is None:
            events.append(self._piece(choice, chunk))
        if calls:
            events.append(self._event_of(calls_piece(choice, calls)))
        if chunk.finish_reason is not None:
            ended = self._job.endpoint.piece(self._job.asked, choice, Chunk("", [], finish_reason=chunk.finish_reason))
            events.append(self._event_of(ended | ({"finish_reason": CALLED} if calls else {})))
        return b"".join(events)

    def _read(self, choice: int, chunk: Chunk) -> tuple[Chunk, list[Json]]:
        """Return a part without what may be a call, and the calls of a choice that ends."""
        offer = self._job.asked.offer
        if offer is None:
            return chunk, []
        reader = self._readers.setdefault(choice, Reader(offer))
        text = reader.push(chunk.text)
        rest, calls = reader.end() if chunk.finish_reason is not None else ("", [])
        return replace(chunk, text=text + rest), calls

    def end(self) -> bytes:
        """Return the last events."""
        if not self._job.asked.includes_usage:
            return DONE
        return _event(self._head | {"choices": [], "usage": self._tally.usage}) + DONE

    def _opening(self, choice: int) -> bytes:
        self._opened.add(choice)
        shown = self._job.endpoint.opening(self._job.asked, choice)
        return b"" if shown is None else self._event_of(shown)

    def _piece(self, choice: int, chunk: Chunk) -> bytes:
        return self._event_of(self._job.endpoint.piece(self._job.asked, choice, chunk))

    def _event_of(self, choice: Json) -> bytes:
        asked = self._job.asked
        if not asked.includes_usage:
            return _event(self._head | {"choices": [choice]})
        usage = self._tally.usage if asked.continues_usage else None
        return _event(self._head | {"choices": [choice], "usage": usage})


def _event(value: Json) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"
