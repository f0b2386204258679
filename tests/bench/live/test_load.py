"""The load generator: open loop, everything scored, and an OpenAI-compatible server driven over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from aiohttp import web

from bench.common.score import RequestRecord, Slos, Window, score_be, score_rt
from bench.common.workload import Arrival
from bench.live.load import BrosTarget, LoadError, Mix, OpenAITarget, Query, TargetError, drive
from bench.serve import SUITES, Setup
from client import AsyncClient, AsyncFakeTransport, FakeServer

SLOS = Slos(0.4, 0.2)
MIX = Mix(rt=[Arrival(0.0, 5, 3)], be=[Arrival(0.0, 7, 2)], slos=SLOS, duration_s=0.05, drain_s=0.2, seed=0)


class FakeTarget:
    """Yields its tokens at once; prompts of the lengths in `stuck` never get any, those in `broken` an error."""

    def __init__(self, stuck: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> None:
        self.stuck, self.broken = stuck, broken
        self.queries: list[Query] = []
        self.num_cancelled = 0

    async def stream(self, query: Query) -> AsyncGenerator[int, None]:
        self.queries.append(query)
        if len(query.prompt_ids) in self.broken:
            raise TargetError("lost")
        if len(query.prompt_ids) in self.stuck:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        for _ in range(query.num_output):
            yield 1

    async def close(self) -> None: ...


def test_every_request_is_sent_once_and_its_tokens_are_timed() -> None:
    target = FakeTarget()
    records = asyncio.run(drive(target, MIX))
    assert [(r.is_rt, r.num_prompt, len(r.token_times_s), r.is_finished) for r in records] == [
        (True, 5, 3, True),
        (False, 7, 2, True),
    ]
    assert len({query.request_id for query in target.queries}) == 2


def test_prompts_depend_on_the_seed_only() -> None:
    first, again, other = FakeTarget(), FakeTarget(), FakeTarget()
    for target, seed in ((first, 0), (again, 0), (other, 1)):
        asyncio.run(drive(target, replace(MIX, seed=seed)))
    prompts = [[query.prompt_ids for query in target.queries] for target in (first, again, other)]
    assert prompts[0] == prompts[1]
    assert prompts[0] != prompts[2]


def test_a_request_that_never_answers_is_cancelled_and_is_a_miss() -> None:
    target = FakeTarget(stuck=(5,))
    records = asyncio.run(drive(target, replace(MIX, drain_s=0.02)))
    assert target.num_cancelled == 1
    assert score_rt(records, SLOS, Window(0.0, 1.0))["rt_attainment"] == {"ttft": 0.0, "tpot": 0.0, "both": 0.0}


def test_a_lost_request_is_a_miss_and_the_run_goes_on() -> None:
    records = asyncio.run(drive(FakeTarget(broken=(5,)), MIX))
    assert records[0].error == "lost"
    assert score_rt(records, SLOS, Window(0.0, 1.0))["num_rt_unfinished"] == 1
    assert score_be(records, Window(0.0, 1.0))["num_be_finished"] == 1


def test_a_generator_that_falls_behind_says_so() -> None:
    with pytest.raises(LoadError, match="overloaded"):
        asyncio.run(drive(FakeTarget(), replace(MIX, rt=[Arrival(-1.0, 5, 3)])))


def test_our_server_is_driven_through_the_shipped_client() -> None:
    async def run() -> list[RequestRecord]:
        target = BrosTarget("grpc://127.0.0.1:1")
        target._client = AsyncClient(AsyncFakeTransport(FakeServer()))
        try:
            return await drive(target, MIX)
        finally:
            await target.close()

    records = asyncio.run(run())
    assert all(record.is_finished for record in records), records
    assert all(record.token_times_s for record in records)


def test_an_openai_completions_endpoint_can_be_driven() -> None:
    bodies: list[dict[str, object]] = []

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        bodies.append(body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for i in range(body["max_tokens"]):
            reason = "length" if i == body["max_tokens"] - 1 else None
            event = {"choices": [{"text": " a", "finish_reason": reason}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def run() -> list[RequestRecord]:
        app = web.Application()
        app.router.add_post("/v1/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        target = OpenAITarget(f"http://127.0.0.1:{port}/v1", "m", sends_priority=True)
        try:
            return await drive(target, MIX)
        finally:
            await target.close()
            await runner.cleanup()

    records = asyncio.run(run())
    assert [len(record.token_times_s) for record in records] == [3, 2]
    assert sorted((str(body["model"]), body["priority"], body["max_tokens"]) for body in bodies) == [
        ("m", 0, 3),
        ("m", 1, 2),
    ]


def test_a_setup_draws_the_same_real_time_arrivals_with_and_without_best_effort() -> None:
    alone, beside = Setup("a", rt_rate=0.8), Setup("b", rt_rate=0.8, be_rate=0.4, be_backlog=150)
    assert alone.mix(3).rt == beside.mix(3).rt
    assert len([a for a in beside.mix(3).be if a.arrival_s == 0.0]) == 150


def test_the_suite_of_the_issue_has_its_mixes_and_policies() -> None:
    suite = {setup.name: (setup, policies) for setup, policies in SUITES["issue"]}
    setup, policies = suite["backlog"]
    assert (setup.rt_rate, setup.be_backlog, setup.kv_tokens) == (0.8, 150, 12_288)
    assert set(policies) == {"fcfs", "priority", "priority_tuned", "bros"}
    assert suite["mix_1.2_0.55"][0].rt_rate == 1.2
