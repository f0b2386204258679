"""A completions endpoint whose simulated engines count up (`sim.counts_up`): every missing or double token shows.

The answer to a prompt is known in advance. A stream that moves to another engine must go on counting where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp

from backend.executors.sim import FIRST_WORD_ID, word_at
from bench.live.load import Query, TargetError

_WORD = re.compile(r" t(\d+)")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server says of a prompt: its tokens, and how many of them were cached."""

    num_prompt: int
    num_cached: int


@dataclass(slots=True)
class Answer:
    """What came of one request. Token ids; `rest` is text that is no word of the simulated vocabulary."""

    query: Query
    token_ids: list[int] = field(default_factory=list)
    rest: str = ""
    is_whole: bool = False
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens that an answer lacks, has twice, or should not have at all."""

    num_missing: int
    num_double: int
    num_foreign: int


class CountingTarget:
    """`POST base_url/completions`, the class in `class_header`; keeps every answer by its request."""

    def __init__(self, base_url: str, model: str, class_header: str) -> None:
        self.answers: dict[str, Answer] = {}
        self._url = f"{base_url.rstrip('/')}/completions"
        self._model = model
        self._class_header = class_header
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)

    async def stream(self, query: Query) -> AsyncGenerator[int, None]:
        """Yield the number of new tokens with each event. Raises TargetError."""
        answer = self.answers[query.request_id] = Answer(query)
        body = {"model": self._model, "prompt": query.prompt_ids, "max_tokens": query.num_output}
        body |= {"temperature": 0.0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        headers = {self._class_header: "rt" if query.is_rt else "be"}
        try:
            async with self._session.post(self._url, json=body, headers=headers) as response:
                if response.status != 200:
                    raise TargetError(f"{response.status}: {(await response.text())[:200]}")
                async for line in response.content:
                    if num_tokens := _take(answer, line.decode().strip()):
                        yield num_tokens
        except aiohttp.ClientError as error:
            raise TargetError(str(error)) from error
        if not answer.is_whole:
            raise TargetError("the stream ended without a finish reason")

    async def close(self) -> None:
        await self._session.close()


def _take(answer: Answer, line: str) -> int:
    """Add an event of the stream; return how many tokens it has. Raises TargetError."""
    if not line.startswith("data: {"):
        if line.startswith("event: error"):
            raise TargetError("an error ended the stream")
        return 0
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise TargetError(str(event["error"])[:200])
    if (usage := event.get("usage")) is not None:
        details = usage.get("prompt_tokens_details") or {}
        answer.usage = Usage(usage["prompt_tokens"], details.get("cached_tokens") or 0)
    for choice in event["choices"]:
        answer.is_whole |= choice.get("finish_reason") == "length"
    text = "".join(choice.get("text") or "" for choice in event["choices"])
    token_ids = [int(word) for word in _WORD.findall(text)]
    answer.token_ids += token_ids
    answer.rest += _WORD.sub("", text)
    return len(token_ids)


def count(answers: Iterable[Answer], vocab_size: int) -> Count:
    """Count the faults of the answers; one that is not whole may lack its end."""
    missing = double = foreign = 0
    for answer in answers:
        positions = _positions(answer, vocab_size)
        valid = [position for position in positions if 0 <= position < answer.query.num_output]
        foreign += len(positions) - len(valid) + bool(answer.rest)
        end = answer.query.num_output if answer.is_whole else max(valid, default=-1) + 1
        missing += end - len(set(valid))
        double += len(valid) - len(set(valid))
        foreign += sum(later < earlier for earlier, later in pairwise(valid))
    return Count(missing, double, foreign)


def _positions(answer: Answer, vocab_size: int) -> Sequence[int]:
    """Return for each token where in the answer it belongs."""
    prompt_ids = answer.query.prompt_ids
    first = word_at(vocab_size, prompt_ids[0], len(prompt_ids))
    num_words = vocab_size - FIRST_WORD_ID
    return [(token_id - first) % num_words for token_id in answer.token_ids]
