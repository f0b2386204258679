"""A server in this process: deterministic answers, the real one's rules and refusals, no model.

It repeats the words of the prompt. For tests of code that uses this package, and for trying the commands without a
server (`--url fake://`, `fake://?token_s=0.01&max_concurrent=8`). The same tests run on it and on a real server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import parse_qs, urlsplit

import msgspec

from client import wire
from client.errors import CancelledError, UnavailableError, parse_error
from client.generation import Call, Outputs, Scalar
from client.snapshot import ClassCounts, KVPoolView, PreemptionView, RequestView, Snapshot, StepView

FAKE_SNAPSHOT = Snapshot(
    version=1,
    policy="fake",
    requests_by_class={"rt": ClassCounts(0, 1, 0), "be": ClassCounts(3, 0, 1)},
    latency_error_ratio=0.04,
    total_steps=7,
    total_step_tokens={"rt": 40, "be": 90},
    total_preemptions={"rt": 0, "be": 1},
    total_copied_out_tokens=12,
    total_copied_in_tokens=0,
    total_recomputed_tokens=0,
    step=StepView(0.021, 0.020, 0.050, num_tokens={"rt": 1, "be": 0}, num_requests={"rt": 1, "be": 0}),
    kv=KVPoolView(16, bytes([16, 16, 8, 0, 0, 0, 0, 0]), bytes([0, 0, 4, 16, 16, 5, 0, 0]), 64, 12),
    requests=[
        RequestView("fake-1", "rt", "running", 0.8, 0.12, 40, 8, 40, 0, 0),
        RequestView("fake-2", "be", "preempted", 4.0, None, 53, 3, 41, 12, 1),
    ],
    preemptions=[PreemptionView(6, "fake-2", "be", 41, 53, is_checkpointed=True, in_favour_of="fake-1")],
)


@dataclass
class FakeServer:
    """The rules of the fake: what it refuses, what it answers, and what it saw.

    A token takes `token_s` seconds; more than `max_concurrent` requests at once are refused; `is_down` refuses all.
    """

    token_s: float = 0.0
    max_concurrent: int | None = None
    max_model_len: int = 8192
    is_down: bool = False
    calls: list[Call] = field(default_factory=list)
    open_ids: set[str] = field(default_factory=set)
    cancelled_ids: list[str] = field(default_factory=list)

    @classmethod
    def from_url(cls, url: str) -> FakeServer:
        """Return the server that `fake://?token_s=…&max_concurrent=…` describes."""
        query = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
        limit = query.get("max_concurrent")
        return cls(token_s=float(query.get("token_s", 0.0)), max_concurrent=int(limit) if limit else None)

    @contextmanager
    def request(self, call: Call) -> Iterator[Iterator[Outputs]]:
        """Take a request in and give its responses; leaving before the last one counts as a cancellation."""
        if self.is_down:
            raise UnavailableError("no server, or the connection broke: the fake is down")
        self.calls.append(call)
        if self.max_concurrent is not None and len(self.open_ids) >= self.max_concurrent:
            raise parse_error(f"OVERLOADED: fake: {self.max_concurrent} requests are open; retry_after_ms=1")
        self.open_ids.add(call.request_id)
        try:
            yield self._responses(call)
        finally:
            self.open_ids.discard(call.request_id)

    def _responses(self, call: Call) -> Iterator[Outputs]:
        if wire.INSPECT in call.parameters:
            is_whole = call.parameters[wire.INSPECT] == wire.INSPECT_ENGINE
            seen = FAKE_SNAPSHOT if is_whole else msgspec.structs.replace(FAKE_SNAPSHOT, requests=[], preemptions=[])
            yield {"text_output": [msgspec.json.encode(seen).decode()], "finish_reason": ["stop"]}
            return
        words = _prompt_words(call)
        num_tokens = _checked(call, len(words), self.max_model_len)
        is_final = False
        try:
            for response in _answer(call, words, num_tokens, self.token_s):
                is_final = "finish_reason" in response
                yield response
        finally:
            if not is_final:
                self.cancelled_ids.append(call.request_id)


class FakeTransport:
    """Transport to a FakeServer, for threads."""

    def __init__(self, server: FakeServer | None = None) -> None:
        self.server = server or FakeServer()

    def stream(self, call: Call) -> Generator[Outputs, None, None]:
        """See `Transport.stream`."""
        with self.server.request(call) as responses:
            for response in responses:
                if self.server.token_s:
                    time.sleep(self.server.token_s * _num_tokens(response))
                yield response

    def close(self) -> None:
        """Nothing is held."""


class AsyncFakeTransport:
    """Transport to a FakeServer, for one event loop."""

    def __init__(self, server: FakeServer | None = None) -> None:
        self.server = server or FakeServer()

    async def stream(self, call: Call) -> AsyncGenerator[Outputs, None]:
        """See `AsyncTransport.stream`."""
        with self.server.request(call) as responses:
            for response in responses:
                await asyncio.sleep(self.server.token_s * _num_tokens(response))
                yield response

    async def close(self) -> None:
        """Nothing is held."""


def _prompt_words(call: Call) -> list[str]:
    given = [name for name in ("text_input", "messages", "input_ids") if name in call.inputs]
    if len(given) != 1:
        raise parse_error(f"INVALID_REQUEST: one of text_input, messages and input_ids must be given, not {given}")
    value = call.inputs[given[0]]
    if given[0] == "input_ids":
        return [f"<{token_id}>" for token_id in cast("list[int]", value)]
    text = json.loads(cast(str, value))[-1]["content"] if given[0] == "messages" else cast(str, value)
    return cast("list[str]", text.split())


def _checked(call: Call, num_prompt: int, max_model_len: int) -> int:
    """Return the number of tokens to produce; raise what a real server would refuse with."""
    max_tokens = cast(int, call.inputs.get("max_tokens", 16))
    if num_prompt == 0:
        raise parse_error("INVALID_REQUEST: the prompt is empty")
    if max_tokens < 1:
        raise parse_error(f"INVALID_REQUEST: max_tokens: {max_tokens} is below 1")
    if call.inputs.get("priority_class", "rt") not in ("rt", "be", "1", "2"):
        raise parse_error(f"INVALID_REQUEST: priority_class: {call.inputs['priority_class']!r} is not rt or be")
    if num_prompt + max_tokens > max_model_len:
        raise parse_error(f"TOO_LARGE: prompt of {num_prompt} and output of {max_tokens} exceed {max_model_len} tokens")
    return max_tokens


def _answer(call: Call, words: list[str], max_tokens: int, token_s: float) -> Iterator[Outputs]:
    """Yield the responses: a token each, or all in one without `stream`."""
    stop_words = set(cast("list[str]", call.inputs.get("stop_words", ())))
    tokens = list(
        itertools.takewhile(lambda word: word not in stop_words, itertools.islice(itertools.cycle(words), max_tokens))
    )
    echo = "" if call.inputs.get("exclude_input_in_output", True) else " ".join(words)
    max_served = int(call.timeout_s / token_s) if call.timeout_s is not None and token_s else max_tokens
    size = 1 if call.inputs.get("stream") else max(1, len(tokens))
    pieces = [range(start, min(start + size, len(tokens))) for start in range(0, len(tokens), size)] or [range(0)]
    for piece in pieces:
        if piece.stop > max_served:
            raise CancelledError(f"CANCELLED: request {call.request_id!r}: no full answer within {call.timeout_s} s")
        response: dict[str, Sequence[Scalar]] = {
            "text_output": [(echo if piece is pieces[0] else "") + "".join(f"{tokens[k]} " for k in piece)],
            "output_ids": [words.index(tokens[k]) for k in piece],
        }
        if call.inputs.get("return_log_probs"):
            response["log_probs"] = [-0.5 for _ in piece]
        if num_top := cast(int, call.inputs.get("num_top_log_probs", 0)):
            response["top_ids"] = list(range(num_top)) * len(piece)
            response["top_log_probs"] = [-0.5 - k for k in range(num_top)] * len(piece)
        if piece is pieces[-1]:
            response["finish_reason"] = ["length" if len(tokens) == max_tokens else "stop"]
            response |= _metrics(len(words), len(tokens), token_s)
        yield response


def _metrics(num_prompt: int, num_output: int, token_s: float) -> Outputs:
    return {
        "ttft_ms": [token_s * 1e3],
        **({"tpot_ms": [token_s * 1e3]} if num_output > 1 else {}),
        "queue_ms": [0.0],
        "num_preemptions": [0],
        "num_input_tokens": [num_prompt],
        "num_output_tokens": [num_output],
        "num_cached_tokens": [0],
        "hopeless_slo": [False],
    }


def _num_tokens(response: Outputs) -> int:
    return len(response.get("output_ids", ()))
