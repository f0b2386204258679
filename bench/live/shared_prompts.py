"""A load whose prompts begin alike: conversations that grow, and jobs with a few long system prompts.

A conversation is real-time: each turn sends all that was said before, and waits for its answer. The requests of the
jobs are best-effort and arrive whatever the server does. Every draw is made in advance, but for the answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.common.score import RequestRecord, Slos
from bench.common.workload import poisson_arrivals
from bench.live.counting import CountingTarget
from bench.live.load import FIRST_TOKEN_ID, LAST_TOKEN_ID, Query, follow


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. Tokens; seconds; requests a second. turn_tokens: the mean of an exponential draw."""

    num_talks: int = 32
    think_s: float = 2.0
    turn_tokens: int = 100
    turn_output: int = 32
    max_talk_tokens: int = 1600  # then the conversation ends, and another begins
    num_systems: int = 32
    system_tokens: int = 1024
    own_tokens: int = 48
    job_output: int = 24
    job_rate: float = 70.0


@dataclass(frozen=True, slots=True)
class SharedLoad:
    """Requests arrive for `duration_s`; real-time ones get `drain_s` more."""

    sizes: Sizes
    slos: Slos
    duration_s: float
    drain_s: float
    seed: int


async def drive_shared(target: CountingTarget, load: SharedLoad) -> list[RequestRecord]:
    """Send the load; return what every request got, with times from the start of the run.

    Best-effort requests that are open at the end are cancelled.
    """
    start_s, records = time.monotonic(), list[RequestRecord]()
    talks = [asyncio.create_task(_talk(target, load, index, start_s, records)) for index in range(load.sizes.num_talks)]
    jobs = []
    for arrival_s, query in job_queries(load):
        await asyncio.sleep(max(0.0, start_s + arrival_s - time.monotonic()))
        jobs.append(asyncio.create_task(_send(target, query, arrival_s, start_s, records)))
    await asyncio.sleep(max(0.0, start_s + load.duration_s - time.monotonic()))
    await asyncio.wait(talks, timeout=load.drain_s)
    for task in (*talks, *jobs):
        task.cancel()
    for outcome in await asyncio.gather(*talks, *jobs, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return records


def job_queries(load: SharedLoad) -> Iterator[tuple[float, Query]]:
    """Yield the best-effort requests and when they arrive."""
    sizes, rng = load.sizes, np.random.default_rng([load.seed, 0])
    systems = [_tokens(rng, sizes.system_tokens) for _ in range(sizes.num_systems)]
    for index, arrival_s in enumerate(poisson_arrivals(sizes.job_rate, load.duration_s, rng)):
        prompt = systems[int(rng.integers(sizes.num_systems))] + _tokens(rng, sizes.own_tokens)
        yield arrival_s, Query(f"be-{load.seed}-{index}", False, prompt, sizes.job_output, load.slos)


async def _talk(
    target: CountingTarget, load: SharedLoad, index: int, start_s: float, records: list[RequestRecord]
) -> None:
    """Hold conversations, one after the other, until the time is over."""
    sizes, rng = load.sizes, np.random.default_rng([load.seed, 1, index])
    said: list[int] = []
    await asyncio.sleep(float(rng.uniform(0.0, sizes.think_s)))
    for turn in range(2**31):
        said += _tokens(rng, 1 + int(rng.exponential(sizes.turn_tokens)))
        now_s = time.monotonic() - start_s
        if now_s >= load.duration_s:
            return
        query = Query(f"rt-{load.seed}-{index}-{turn}", True, list(said), sizes.turn_output, load.slos)
        await _send(target, query, now_s, start_s, records)
        said += target.answers[query.request_id].token_ids
        if len(said) > sizes.max_talk_tokens:
            said = []
        left_s = load.duration_s - (time.monotonic() - start_s)
        await asyncio.sleep(min(float(rng.exponential(sizes.think_s)), max(0.0, left_s)))


async def _send(
    target: CountingTarget, query: Query, arrival_s: float, start_s: float, records: list[RequestRecord]
) -> None:
    record = RequestRecord(query.request_id, query.is_rt, arrival_s, len(query.prompt_ids), query.num_output)
    records.append(record)
    await follow(target, query, record, start_s)


def _tokens(rng: np.random.Generator, num_tokens: int) -> list[int]:
    token_ids: list[int] = rng.integers(FIRST_TOKEN_ID, LAST_TOKEN_ID, num_tokens).tolist()
    return token_ids


def hit_share(target: CountingTarget, ids: Sequence[str]) -> float | None:
    """Return the part of the prompt tokens of answered requests that engines had cached; None without any."""
    used = [target.answers[each].usage for each in ids if target.answers[each].usage is not None]
    num_prompt = sum(usage.num_prompt for usage in used if usage is not None)
    return sum(usage.num_cached for usage in used if usage is not None) / num_prompt if num_prompt else None
