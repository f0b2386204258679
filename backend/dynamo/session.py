"""The requests of one worker on their way through the engine, for asyncio."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from backend.core.errors import EngineUnavailableError, InvalidRequestError
from backend.dynamo.translate import answer_of, generation_of, is_worth_moving
from backend.link.engine_link import EngineLink
from backend.link.validate import Defaults
from backend.wire.protocol import Chunk, End


class MoveElsewhere(Exception):
    """This worker cannot go on with a request; another one may."""


class Session:
    """Hands requests to the engine and its chunks to whoever awaits them."""

    def __init__(self, link: EngineLink, defaults: Defaults) -> None:
        self._link = link
        self._defaults = defaults
        self._numbers = itertools.count(1)

    async def answer(
        self, request: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer in Dynamo's words. Closing the iterator cancels the request in the engine.

        Raises InvalidRequestError for what the client must change, and MoveElsewhere where the engine fails.
        """
        generation = generation_of(request, metadata, self._defaults)
        loop, chunks = asyncio.get_running_loop(), asyncio.Queue[Chunk]()

        def deliver(chunk: Chunk) -> None:
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        try:
            ticket = self._link.submit(f"dynamo-{next(self._numbers)}", generation, deliver)
        except EngineUnavailableError as error:
            raise MoveElsewhere(str(error)) from error
        num_sent, has_ended = 0, False
        try:
            while not has_ended:
                chunk = await chunks.get()
                num_sent += len(chunk.token_ids)
                has_ended = chunk.end is not None
                if chunk.end is not None:
                    _raise_error(chunk.end)
                yield answer_of(chunk, generation, num_sent)
        finally:
            if not has_ended:
                self._link.cancel(ticket)


def _raise_error(end: End) -> None:
    if end.error_code is None:
        return
    message = f"{end.error_code}: {end.error_message}"
    if is_worth_moving(end.error_code):
        raise MoveElsewhere(message)
    raise InvalidRequestError(end.error_message) if end.error_code == "INVALID_REQUEST" else RuntimeError(message)
