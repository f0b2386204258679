"""Tiers become headers, the rest passes through; with a frontend that says what it got."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from backend.dynamo.tier_door import (
    BODY_TIMEOUT_S,
    CLASS_HEADER,
    CLASS_OF_TIER,
    MAX_BODY_BYTES,
    UNSERVED,
    make_app,
    translated,
)
from client.openai.bodies import REFUSED
from client.openai.tiers import TIER_NAMES, Rule
from front import http
from front.settings import Settings


def test_the_tiers_are_those_of_the_other_front_door() -> None:
    assert set(CLASS_OF_TIER) == set(TIER_NAMES)
    for default in ("rt", "be"):
        rule = Rule(default)  # type: ignore[arg-type]  # a literal to mypy only
        served = {tier: rule.served(tier, "bros").priority_class for tier in TIER_NAMES}
        assert served == {tier: named or default for tier, named in CLASS_OF_TIER.items()}


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({"service_tier": "flex"}, {CLASS_HEADER: "be"}),
        ({"service_tier": "fast"}, {CLASS_HEADER: "rt"}),
        ({"service_tier": "auto"}, {}),
        ({"service_tier": None}, {}),
        (
            {"ttft_slo_ms": 250, "deadline_ms": 86399123},
            {"x-dynamo-meta-ttft-slo-ms": "250", "x-dynamo-meta-deadline-ms": "86399123"},
        ),
        ({"tpot_slo_ms": None}, {}),
    ],
)
def test_what_dynamo_does_not_know_becomes_headers(fields: dict[str, Any], added: dict[str, str]) -> None:
    body, headers = translated(json.dumps({"model": "bros", **fields}).encode(), {})
    assert (json.loads(body), headers) == ({"model": "bros"}, added)


def test_what_the_other_front_door_refuses_is_refused_here() -> None:
    refused = {name: each.harmless for fields in REFUSED.values() for name, each in fields.items()}
    assert refused.items() <= UNSERVED.items()
    assert UNSERVED.keys() - refused.keys() == {"allowed_token_ids", "thinking_token_budget"}  # of Dynamo alone


@pytest.mark.parametrize("name", UNSERVED)
def test_a_field_without_effect_is_refused_unless_it_asks_for_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: this value is not supported"):
        translated(json.dumps({"model": "bros", name: [5]}).encode(), {})
    for value in (None, *UNSERVED[name]):
        body = json.dumps({"model": "bros", name: value}).encode()
        assert translated(body, {}) == (body, {})


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="min_tokens: 30 exceeds max_tokens 16"):
        translated(b'{"min_tokens": 30, "max_tokens": 16}', {})
    assert translated(b'{"min_tokens": 16, "max_tokens": 16}', {})[1] == {}


@pytest.mark.parametrize("body", [b'{"model": "bros" }', b"[1]", b"{", b"\xff", b"[" * 100_000, b""])
def test_every_other_body_stays_as_it_is(body: bytes) -> None:
    assert translated(body, {CLASS_HEADER: "rt"}) == (body, {})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"service_tier": "gold"}, "service_tier: 'gold' is not one of flex"),
        ({"service_tier": ["flex"]}, "service_tier"),
        ({"service_tier": "flex"}, f"'be'; {CLASS_HEADER} says 'rt'"),
        ({"ttft_slo_ms": "soon"}, "ttft_slo_ms: 'soon'"),
        ({"ttft_slo_ms": 0}, "ttft_slo_ms: '0'"),
        ({"tpot_slo_ms": -5}, "tpot_slo_ms: '-5'"),
        ({"deadline_ms": False}, "deadline_ms: 'False'"),
        ({"deadline_ms": ""}, "deadline_ms: ''"),
        ({"deadline_ms": True}, "deadline_ms"),
        ({"deadline_ms": 10**30}, "deadline_ms"),
        ({"deadline_ms": 10**400}, "deadline_ms"),
        ({"service_tier": "x" * 2_000}, "service_tier: 2002 bytes exceed 1024"),
        ({str(number): 1 for number in range(60_001)}, "60001 fields; the most are 60000"),
    ],
)
def test_what_contradicts_or_is_unknown_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        translated(json.dumps(fields).encode(), {CLASS_HEADER: "rt"})


def test_its_bounds_are_those_of_the_other_front_door() -> None:
    assert Settings().max_body_bytes == MAX_BODY_BYTES
    assert http.BODY_TIMEOUT_S == BODY_TIMEOUT_S


def test_what_is_not_its_own_is_passed_on_byte_by_byte() -> None:
    rest = b'"messages":[{"role": "user", "content": "\\ud83d\\ude00 \\": 1.0e1"}],"seed":1E2'
    body, _ = translated(b'{"service_tier": "flex", ' + rest + b"}", {})
    assert body == b"{" + rest + b"}"


def test_signs_within_a_text_are_no_fields() -> None:
    body = json.dumps({"service_tier": "flex", "prompt": '":' * 100_000}).encode()
    assert translated(body, {})[1] == {CLASS_HEADER: "be"}


def through(frontend: web.Application | None, use: Callable[[str, aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Call `use` with the URL of a door to `frontend`; None: nobody is there."""

    async def main() -> None:
        behind = TestServer(frontend or web.Application())
        await behind.start_server()
        door = TestServer(make_app(f"http://{behind.host}:{behind.port}"))
        if frontend is None:
            await behind.close()
        await door.start_server()
        async with aiohttp.ClientSession() as session:
            await asyncio.wait_for(use(f"http://{door.host}:{door.port}", session), 20.0)
        await door.close()
        await behind.close()

    asyncio.run(main())


def test_request_and_answer_pass_through_with_path_status_and_headers() -> None:
    async def say(request: web.Request) -> web.Response:
        said = {"path": request.raw_path, "class": request.headers.get(CLASS_HEADER), "body": await request.text()}
        return web.json_response(said, status=429, headers={"retry-after": "7"})

    frontend = web.Application()
    frontend.router.add_route("*", "/{path:.*}", say)

    async def use(url: str, session: aiohttp.ClientSession) -> None:
        async with session.post(f"{url}/v1/x?a=%20b", json={"service_tier": "flex", "n": 1}) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (429, "7")
            assert await answer.json() == {"path": "/v1/x?a=%20b", "class": "be", "body": '{"n":1}'}
        async with session.get(f"{url}/health") as answer:
            assert await answer.json() == {"path": "/health", "class": None, "body": ""}
        long = {"service_tier": "flex", "prompt": "x" * 100_000}
        async with session.post(f"{url}/v1/x", json=long) as answer:
            assert (await answer.json())["class"] == "be"
        async with session.post(f"{url}/v1/x", json={}, headers={"content-encoding": "deflate"}) as answer:
            assert answer.status == 400
        async with session.post(f"{url}/v1/x", json={"service_tier": "gold"}) as answer:
            assert answer.status == 400
            assert "gold" in (await answer.json())["error"]["message"]

    through(frontend, use)


def test_an_objective_of_the_body_goes_alone() -> None:
    """One header of each spelling went on, and the frontend took which it liked."""

    async def say(request: web.Request) -> web.Response:
        return web.json_response(request.headers.getall("x-dynamo-meta-ttft-slo-ms"))

    frontend = web.Application()
    frontend.router.add_route("*", "/{path:.*}", say)

    async def use(url: str, session: aiohttp.ClientSession) -> None:
        named = {"X-Dynamo-Meta-TTFT-SLO-ms": "9000"}
        async with session.post(f"{url}/v1/x", json={"ttft_slo_ms": 250}, headers=named) as answer:
            assert await answer.json() == ["250"]

    through(frontend, use)


def test_a_stream_comes_piece_by_piece_and_a_client_that_leaves_ends_it() -> None:
    has_left = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await response.write(b"data: 1\n\n")
            while True:
                await asyncio.sleep(0.001)
                await response.write(b"data: 2\n\n")
        finally:
            has_left.set()

    frontend = web.Application()
    frontend.router.add_post("/v1/x", stream)

    async def use(url: str, session: aiohttp.ClientSession) -> None:
        async with session.post(f"{url}/v1/x", json={}) as answer:
            assert await answer.content.readline() == b"data: 1\n"
            assert not has_left.is_set()
            answer.close()
        await has_left.wait()

    through(frontend, use)
    assert has_left.is_set()


def test_a_target_that_is_no_path_is_refused() -> None:
    """Behind the frontend's address it would name another host."""

    async def use(url: str, _: aiohttp.ClientSession) -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET @127.0.0.2:80/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()

    through(web.Application(), use)


def test_a_frontend_that_is_not_there_is_a_502() -> None:
    async def use(url: str, session: aiohttp.ClientSession) -> None:
        async with session.post(f"{url}/v1/x", json={}) as answer:
            assert answer.status == 502
            assert "not there" in (await answer.json())["error"]["message"]

    through(None, use)
