"""A worker of NVIDIA Dynamo that ends, asked or not: no stream is lost, and it leaves. Needs `make serve-many` once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2 as httpx
import pytest

from bench.common.score import Slos
from bench.live.counting import Answer, Count, CountingTarget, count
from bench.live.load import Query
from tests.backend.dynamo.running import START_TIMEOUT_S, Many, needs_dynamo, serving
from tests.triton.servers import wait_until

pytestmark = needs_dynamo
VOCAB_SIZE, STEP_S = 32_000, 0.04
DRAIN_S = 4.0
GONE_S = 5.0  # until the frontend has forgotten a worker that ended; a lease ends after 8 s and more
HUNG_S = 20.0  # … and one that hangs
SHORT, LONG = round(0.5 * DRAIN_S / STEP_S), round(2.5 * DRAIN_S / STEP_S)  # tokens: within the limit, and beyond it


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Many]:
    config: Path = tmp_path_factory.mktemp("drain") / "engine.json"
    sim = {"coefficients": [STEP_S, 0, 0, 0, 0], "vocab_size": VOCAB_SIZE, "counts_up": True}
    config.write_text(json.dumps({"executor": "sim", "sim": sim}))
    options = ("--router", "round-robin", "--drain-timeout-s", str(DRAIN_S))
    with serving("--replicas", "2", "--config", str(config), *options) as many:
        yield many


def answers_of(many: Many, lengths: Sequence[int], victim: int, how: signal.Signals) -> list[Answer]:
    """Send a request of each length, end `victim` when each has a token, send as many again, and return what came."""

    async def follow(target: CountingTarget, index: int, begun: asyncio.Semaphore) -> None:
        query = Query(str(index), True, [1000 + index, 2000], lengths[index % len(lengths)], Slos(1.0, 1.0))
        async for _ in target.stream(query):
            begun.release()

    async def main() -> list[Answer]:
        target, begun = CountingTarget(f"{many.url}/v1", "bros", "x-dynamo-meta-policy-class"), asyncio.Semaphore(0)
        tasks = [asyncio.create_task(follow(target, index, begun)) for index in range(len(lengths))]
        for _ in range(2 * len(lengths)):
            await begun.acquire()
        os.kill(victim, how)
        try:
            timeout_s = HUNG_S if how is signal.SIGSTOP else GONE_S
            await asyncio.to_thread(many.wait_for_instances, 1, timeout_s)  # it gets nothing new
            more = range(len(lengths), 2 * len(lengths))
            tasks += [asyncio.create_task(follow(target, index, begun)) for index in more]
            await asyncio.gather(*tasks)
        finally:
            await target.close()
        return list(target.answers.values())

    return asyncio.run(main())


def answers(many: Many) -> bool:
    """Return whether the frontend answers a request."""
    body = {"model": "bros", "prompt": "?", "max_tokens": 1}
    try:
        return httpx.post(f"{many.url}/v1/completions", json=body, timeout=10.0).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("num_tokens", [SHORT, LONG])
def test_a_worker_that_is_asked_to_end_loses_no_stream_and_leaves(many: Many, num_tokens: int) -> None:
    """Round robin: half of the streams are its own. The long ones go on at the other worker."""
    before, num_said = many.instances(), len(many.said)
    began_s = time.monotonic()
    answers = answers_of(many, [num_tokens] * 6, many.worker_pids[0], signal.SIGTERM)
    assert count(answers, VOCAB_SIZE) == Count(0, 0, 0)
    assert all(answer.is_whole for answer in answers)
    wait_until(lambda: any("ended with code 0" in line for line in many.said[num_said:]), "the worker's end", 30.0)
    assert time.monotonic() - began_s < START_TIMEOUT_S
    many.wait_for_instances(2)  # another worker replaces it
    assert len(many.instances() & before) == 1


def test_a_worker_that_dies_leaves_before_its_lease_ends(many: Many) -> None:
    """The burst that comes then finds the other worker: Dynamo fails one that is for a dead worker."""
    answers = answers_of(many, [SHORT] * 20, many.worker_pids[0], signal.SIGKILL)
    assert count(answers, VOCAB_SIZE) == Count(0, 0, 0)
    assert len(answers) == 40
    assert all(answer.is_whole for answer in answers)
    many.wait_for_instances(2)


def test_a_worker_that_hangs_is_ended_and_its_streams_go_on(many: Many) -> None:
    """Its lease ends after some ten seconds; a drain and five seconds later it is ended."""
    victim = many.worker_pids[0]
    answers = answers_of(many, [LONG] * 4, victim, signal.SIGSTOP)
    assert count(answers, VOCAB_SIZE) == Count(0, 0, 0)
    assert all(answer.is_whole for answer in answers)
    many.wait_for_instances(2)
    assert victim not in many.worker_pids


def test_a_frontend_that_dies_is_started_again_and_finds_its_workers(many: Many) -> None:
    before = many.instances()
    os.kill(many.frontend_pid, signal.SIGKILL)
    wait_until(lambda: answers(many), "the frontend", START_TIMEOUT_S)
    assert many.instances() == before
