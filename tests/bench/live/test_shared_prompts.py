"""Prompts that begin alike: the drawn lengths, the prompt of each turn, and the cached part of the prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise

import numpy as np
import pytest

from bench.common.score import RequestRecord, Slos
from bench.live.counting import Answer, CountingTarget, Usage
from bench.live.load import Query
from bench.live.shared_prompts import SharedLoad, Sizes, drive_shared, hit_share, job_queries

SLOS = Slos(1.0, 1.0)
DURATION_S = 0.4


class Echo(CountingTarget):
    """Answers at once, with numbers that tell turns apart."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}

    async def stream(self, query: Query) -> AsyncGenerator[int, None]:
        answer = self.answers[query.request_id] = Answer(query)
        answer.token_ids = list(range(100 + len(self.answers), 100 + len(self.answers) + query.num_output))
        answer.is_whole = True
        yield query.num_output


def load(seed: int = 0, duration_s: float = 2.0, **sizes: float) -> SharedLoad:
    small = {"num_talks": 2, "think_s": 1e-3, "turn_tokens": 5, "turn_output": 2, "job_rate": 200.0, "system_tokens": 8}
    return SharedLoad(Sizes(**{**small, **sizes}), SLOS, duration_s, 5.0, seed)  # type: ignore[arg-type]  # by name


@pytest.fixture(scope="module")
def driven() -> tuple[Echo, list[RequestRecord]]:
    async def main() -> tuple[Echo, list[RequestRecord]]:
        target = Echo()
        return target, await drive_shared(target, load(duration_s=DURATION_S, max_talk_tokens=60))

    return asyncio.run(main())


def prompts_of(target: Echo, talk: int) -> list[Answer]:
    return [each for name, each in target.answers.items() if name.startswith(f"rt-0-{talk}-")]


def test_jobs_share_as_many_beginnings_as_there_are_systems_and_nothing_else() -> None:
    shared = load(num_systems=3, own_tokens=4)
    prompts = [query.prompt_ids for _, query in job_queries(shared)]
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 3
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts) > 200
    assert {len(prompt) for prompt in prompts} == {12}
    assert [query for _, query in job_queries(shared)] == [query for _, query in job_queries(shared)]
    assert [query for _, query in job_queries(load(1))] != [query for _, query in job_queries(load(0))]


def test_a_turn_sends_all_that_was_said_before_and_the_answers(driven: tuple[Echo, list[RequestRecord]]) -> None:
    target, records = driven
    assert {record.is_rt for record in records} == {True, False}
    num_followed = 0
    for before, after in (*pairwise(prompts_of(target, 0)), *pairwise(prompts_of(target, 1))):
        said = [*before.query.prompt_ids, *before.token_ids]
        if len(said) <= 60:
            assert after.query.prompt_ids[: len(said)] == said
            assert len(after.query.prompt_ids) > len(said)
            num_followed += 1
    assert num_followed > 2


def test_a_conversation_that_is_long_enough_ends_and_another_begins(driven: tuple[Echo, list[RequestRecord]]) -> None:
    pairs = list(pairwise(prompts_of(driven[0], 0)))
    ends = [len(before.query.prompt_ids) + len(before.token_ids) > 60 for before, _ in pairs]
    assert [len(after.query.prompt_ids) < len(before.query.prompt_ids) for before, after in pairs] == ends
    assert any(ends)


def test_every_request_is_recorded_with_its_arrival(driven: tuple[Echo, list[RequestRecord]]) -> None:
    target, records = driven
    assert {record.request_id for record in records} == target.answers.keys()
    assert all(record.is_finished and record.ttft_s is not None for record in records)
    assert np.all(np.array([record.arrival_s for record in records]) < DURATION_S)


@pytest.mark.parametrize(("cached", "share"), [((90, 0), 0.45), ((None, 10), 0.1), ((None, None), None)])
def test_hits_are_counted_where_the_server_says_them(cached: tuple[int | None, ...], share: float | None) -> None:
    target = Echo()
    for index, num_cached in enumerate(cached):
        usage = None if num_cached is None else Usage(100, num_cached)
        target.answers[str(index)] = Answer(Query(str(index), True, [1], 1, SLOS), usage=usage)
    assert hit_share(target, ["0", "1"]) == share
