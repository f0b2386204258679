"""An open-loop load on a live server: requests leave at their appointed times, whatever the server does.

    result = await drive(target, Mix(rt=…, be=…, …))

A `Target` is anything that streams tokens: our server through `client`, or an OpenAI-compatible completions endpoint.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import numpy as np

from bench.common.score import RequestRecord, Slos
from bench.common.workload import Arrival
from client import AsyncClient
from client.errors import ClientError

FIRST_TOKEN_ID, LAST_TOKEN_ID = 1_000, 30_000  # ordinary words in every vocabulary here, the simulated one too
MAX_LATE_S = 0.25  # a generator later than this is overloaded itself


@dataclass(frozen=True, slots=True)
class Query:
    """One request as a target gets it."""

    request_id: str
    is_rt: bool
    prompt_ids: list[int]
    num_output: int
    slos: Slos


@dataclass(frozen=True, slots=True)
class Mix:
    """A load: open-loop arrivals of both classes. `drain_s`: how long after `duration_s` answers are waited for."""

    rt: Sequence[Arrival]
    be: Sequence[Arrival]
    slos: Slos
    duration_s: float
    drain_s: float
    seed: int


class LoadError(Exception):
    """The load generator could not keep its own schedule, so the run says nothing about the server."""


class Target(Protocol):
    """A server under load."""

    def stream(self, query: Query) -> AsyncGenerator[int, None]:
        """Yield the number of new tokens with each piece of the answer; closing it cancels. Raises TargetError."""
        ...

    async def close(self) -> None: ...


class TargetError(Exception):
    """The server refused or lost one request."""


class BrosTarget:
    """Our server, through the shipped client; RT requests carry their SLOs.

    `server_ttft_s`: by request, the time to the first token as the server took it, of those that are answered.
    """

    def __init__(self, url: str) -> None:
        self._client = AsyncClient(url)
        self.server_ttft_s: dict[str, float] = {}

    async def stream(self, query: Query) -> AsyncGenerator[int, None]:
        chunks = (
            self._client.stream(
                query.prompt_ids,
                priority_class="rt",
                ttft_slo_s=query.slos.ttft_slo_s,
                tpot_slo_s=query.slos.tpot_slo_s,
                max_tokens=query.num_output,
                ignore_eos=True,
                request_id=query.request_id,
            )
            if query.is_rt
            else self._client.stream(
                query.prompt_ids,
                priority_class="be",
                max_tokens=query.num_output,
                ignore_eos=True,
                request_id=query.request_id,
            )
        )
        try:
            async with chunks:
                async for chunk in chunks:
                    if chunk.metrics is not None and chunk.metrics.ttft_s is not None:
                        self.server_ttft_s[query.request_id] = chunk.metrics.ttft_s
                    yield len(chunk.token_ids)
        except ClientError as error:
            raise TargetError(str(error)) from error

    async def close(self) -> None:
        await self._client.close()


class OpenAITarget:
    """An OpenAI-compatible completions endpoint (`base_url` ends in /v1). RT goes first by vLLM's `priority` field.

    One token per event is assumed, as vLLM and llama.cpp send them.
    """

    def __init__(self, base_url: str, model: str, sends_priority: bool) -> None:
        self._url = f"{base_url.rstrip('/')}/completions"
        self._model = model
        self._sends_priority = sends_priority
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)

    async def stream(self, query: Query) -> AsyncGenerator[int, None]:
        body: dict[str, object] = {
            "model": self._model,
            "prompt": query.prompt_ids,
            "max_tokens": query.num_output,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
        }
        if self._sends_priority:
            body["priority"] = 0 if query.is_rt else 1
        try:
            async with self._session.post(self._url, json=body) as response:
                response.raise_for_status()
                async for line in response.content:
                    event = line.decode().strip().removeprefix("data: ")
                    if event and event != "[DONE]":
                        yield _num_tokens(event)
        except aiohttp.ClientError as error:
            raise TargetError(str(error)) from error

    async def close(self) -> None:
        await self._session.close()


async def drive(target: Target, mix: Mix, max_late_s: float = MAX_LATE_S) -> list[RequestRecord]:
    """Send the load and return what every request got; times count from the start of the run.

    Ends when the real-time requests are answered or the drain is over. Requests still open then are cancelled and stay
    unfinished. Raises LoadError when requests left later than `max_late_s`, because this process was too slow.
    """
    records, tasks, rt_tasks = [], [], []
    start_s = time.monotonic()
    for query, arrival in _queries(mix):
        delay_s = start_s + arrival.arrival_s - time.monotonic()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        record = RequestRecord(
            query.request_id, query.is_rt, arrival.arrival_s, len(query.prompt_ids), query.num_output
        )
        task = asyncio.create_task(follow(target, query, record, start_s))
        records.append(record)
        tasks.append(task)
        if query.is_rt:
            rt_tasks.append(task)
        if -delay_s > max_late_s:
            raise LoadError(f"{query.request_id} left {-delay_s:.2f} s late: the load generator is overloaded")
    await asyncio.sleep(max(0.0, start_s + mix.duration_s - time.monotonic()))
    if rt_tasks:
        await asyncio.wait(rt_tasks, timeout=mix.drain_s)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return records


async def follow(target: Target, query: Query, record: RequestRecord, start_s: float) -> None:
    """Send one request, and note in `record` what comes of it; times count from `start_s`."""
    try:
        async with aclosing(target.stream(query)) as pieces:
            async for num_tokens in pieces:
                now_s = time.monotonic() - start_s
                record.token_times_s.extend([now_s] * num_tokens)
        record.finished_s = time.monotonic() - start_s
    except TargetError as error:
        record.finished_s, record.error = time.monotonic() - start_s, str(error)


def _queries(mix: Mix) -> Iterable[tuple[Query, Arrival]]:
    """Both classes in order of arrival, with random prompts that share no prefix."""
    rng = np.random.default_rng([mix.seed, 3])
    both = [(arrival, True) for arrival in mix.rt] + [(arrival, False) for arrival in mix.be]
    both.sort(key=lambda entry: entry[0].arrival_s)
    for index, (arrival, is_rt) in enumerate(both):
        prompt_ids = rng.integers(FIRST_TOKEN_ID, LAST_TOKEN_ID, arrival.num_prompt).tolist()
        name = f"{'rt' if is_rt else 'be'}-{mix.seed}-{index}"
        yield Query(name, is_rt, prompt_ids, arrival.num_output, mix.slos), arrival


def _num_tokens(event: str) -> int:
    """Tokens of one event of a completions stream; the closing event carries one only if it has text."""
    choices = json.loads(event).get("choices") or [{"finish_reason": "usage"}]
    return int(bool(choices[0].get("text")) or choices[0].get("finish_reason") is None)
