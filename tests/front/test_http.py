"""What surrounds an answer: statuses, headers, bodies that are none, clients that leave, and health."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from client import FakeServer
from front import http
from front.settings import Settings
from tests.front.door import CHAT_PATH, Door, error_of, opened

BODY = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 50}
JSON = {"content-type": "application/json"}


def test_an_overloaded_engine_says_when_to_come_again() -> None:
    response = Door(FakeServer(max_concurrent=0)).chat()
    assert response.status_code == 429
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "1")
    assert error_of(response)["code"] == "rate_limit_exceeded"


def test_no_engine_is_a_503() -> None:
    response = Door(FakeServer(is_down=True)).chat()
    assert (response.status_code, error_of(response)["code"]) == (503, "engine_down")
    assert response.headers["retry-after"] == "1"


def test_a_stream_that_is_refused_has_the_status_too() -> None:
    assert Door(FakeServer(max_concurrent=0)).chat(stream=True).status_code == 429


def test_health_is_a_token_from_the_engine() -> None:
    door = Door()
    assert door.get("/health").json() == {"status": "ok"}
    assert len(door.server.calls) == 1
    assert Door(FakeServer(is_down=True)).get("/health").status_code == 503


def test_a_full_engine_is_well() -> None:
    assert Door(FakeServer(max_concurrent=0)).get("/health").status_code == 200


def test_health_asked_often_asks_the_engine_once() -> None:
    server = FakeServer()

    async def main() -> list[int]:
        async with opened(server) as (_, client):
            return [(await client.get("/health")).status_code for _ in range(5)]

    assert asyncio.run(main()) == [200] * 5
    assert len(server.calls) == 1


def test_the_models_are_listed_and_found() -> None:
    listed = Door().get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["bros", "bros_rt", "bros_be"]
    assert Door().get("/v1/models/bros_rt").json() == listed["data"][1]
    assert error_of(Door().get("/v1/models/gpt-5"))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", CHAT_PATH, 405), ("POST", "/health", 405), ("GET", "/v1/models/", 404)],
)
def test_what_is_not_there_is_an_error_in_openais_words(method: str, path: str, status: int) -> None:
    response = Door().send(method, path)
    assert response.status_code == status
    assert path.rstrip("/") in error_of(response)["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b"[" * 100_000, "100000 lists and objects; the most are 20000"),
        (b"[]", "not a JSON object"),
    ],
)
def test_a_body_that_is_no_object_is_refused(content: bytes, words: str) -> None:
    response = Door().send("POST", CHAT_PATH, content=content, headers=JSON)
    assert response.status_code == 400
    assert words in error_of(response)["message"]


def test_a_body_that_a_strange_page_may_send_is_refused() -> None:
    response = Door().send("POST", CHAT_PATH, content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert "'text/plain' is not application/json" in error_of(response)["message"]


def test_a_body_beyond_the_bound_is_not_read() -> None:
    response = Door(settings=Settings(max_body_bytes=100)).chat(user="x" * 100)
    assert response.status_code == 413
    assert "exceeds 100 bytes" in error_of(response)["message"]


def test_bodies_that_have_not_ended_are_bounded_together() -> None:
    async def main() -> None:
        async with opened(FakeServer()) as (app, client):
            app.state.bodies = http.Bodies(max_held_bytes=150_000, max_own_bytes=150_000)
            go_on, has_begun = asyncio.Event(), asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield b" " * 100_000
                has_begun.set()
                await go_on.wait()
                yield json.dumps(BODY).encode()

            first = asyncio.create_task(client.post(CHAT_PATH, content=slow(), headers=JSON))
            await has_begun.wait()
            refused = await client.post(CHAT_PATH, content=b" " * 100_000, headers=JSON)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert (await client.post(CHAT_PATH, json=BODY)).status_code == 200  # a short one has room
            go_on.set()
            assert (await first).status_code == 200
            assert (await client.post(CHAT_PATH, content=b" " * 120_000 + b"{}", headers=JSON)).status_code == 400

    asyncio.run(main())


def test_the_bodies_of_one_client_leave_room_for_those_of_others(tmp_path: Path) -> None:
    keys = {"sk-greedy-1": ["flex"], "sk-modest-1": ["flex"]}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    greedy, modest = ({**JSON, "Authorization": f"Bearer {key}"} for key in keys)
    body = b" " * 100_000 + json.dumps(BODY).encode()

    async def main() -> None:
        async with opened(FakeServer(), Settings(api_key_file=tmp_path / "keys.json")) as (app, client):
            app.state.bodies = http.Bodies(max_held_bytes=400_000, max_own_bytes=150_000)
            go_on, has_begun = asyncio.Event(), asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield body
                has_begun.set()
                await go_on.wait()

            first = asyncio.create_task(client.post(CHAT_PATH, content=slow(), headers=greedy))
            await has_begun.wait()
            refused = await client.post(CHAT_PATH, content=body, headers=greedy)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert (await client.post(CHAT_PATH, content=body, headers=modest)).status_code == 200
            go_on.set()
            assert (await first).status_code == 200

    asyncio.run(main())


def test_a_body_without_a_place_is_refused_before_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        async with opened(FakeServer()) as (app, client):
            monkeypatch.setattr(app.state.engine.reading._turns, "has_place", lambda _, num_bytes: num_bytes < 99_999)
            assert (await client.post(CHAT_PATH, json=BODY)).status_code == 200

            async def never() -> AsyncIterator[bytes]:
                raise AssertionError("a body was read that has no place")
                yield b""

            headers = JSON | {"content-length": "100000"}
            return (await client.post(CHAT_PATH, content=never(), headers=headers)).status_code

    assert asyncio.run(main()) == 429


def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_TIMEOUT_S", 0.01)
    sent = asyncio.run(talk([{"type": "http.request", "body": b"{", "more_body": True}], FakeServer()))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("x-llm-d-slo-ttft-ms", "ttft_slo_ms"),
        ("x-slo-ttft-ms", "ttft_slo_ms"),
        ("x-llm-d-slo-tpot-ms", "tpot_slo_ms"),
        ("x-slo-tpot-ms", "tpot_slo_ms"),
    ],
)
def test_a_header_may_name_an_objective_and_the_body_wins(header: str, name: str) -> None:
    door = Door()
    door.chat({header: "250"})
    assert door.inputs[name] == 250
    door.chat({header: "250"}, **{name: 90})
    assert door.inputs[name] == 90
    assert error_of(door.chat({header: "soon"}))["param"] == header


def test_an_answer_names_the_request() -> None:
    door = Door()
    response = door.chat()
    assert response.headers["x-request-id"] == response.json()["id"] == door.server.calls[-1].request_id


async def talk(messages: list[dict[str, Any]], server: FakeServer) -> list[dict[str, Any]]:
    """Speak ASGI to the application: give it `messages`, then silence; return what it sent."""
    left, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        while left[0]["type"] == "http.disconnect" and not (server.open_ids or server.cancelled_ids):
            await asyncio.sleep(0)  # it leaves when the engine has the request
        return left.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT_PATH, "query_string": b"", "http_version": "1.1"}
    scope |= {"headers": [(b"content-type", b"application/json")], "root_path": "", "scheme": "http"}
    async with opened(server) as (app, _):
        await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_a_stream_cancels_every_choice(n: int) -> None:
    server = FakeServer(token_s=0.01)
    body = json.dumps(BODY | {"stream": True, "n": n, "max_tokens": 1000}).encode()
    asyncio.run(talk([{"type": "http.request", "body": body}, {"type": "http.disconnect"}], server))
    assert len(server.cancelled_ids) == n
    assert server.open_ids == set()


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_before_its_answer_cancels_every_choice(n: int) -> None:
    server = FakeServer(token_s=1.0)  # a thousand seconds for an answer that is waited for
    body = json.dumps(BODY | {"n": n, "max_tokens": 1000}).encode()
    sent = asyncio.run(talk([{"type": "http.request", "body": body}, {"type": "http.disconnect"}], server))
    assert sent[0]["status"] == http.CLIENT_CLOSED_REQUEST
    assert len(server.calls) == n
    assert server.open_ids == set()


@pytest.mark.parametrize(
    ("name", "coding", "status"),
    [
        ("content-encoding", "gzip", 415),
        ("content-encoding", "br", 415),
        ("content-encoding", "identity, gzip", 415),
        ("transfer-encoding", "gzip, chunked", 501),
        ("transfer-encoding", "identity, chunked", 501),
    ],
)
def test_a_compressed_body_is_refused(name: str, coding: str, status: int) -> None:
    response = Door().chat({name: coding})
    assert response.status_code == status
    assert repr(coding) in error_of(response)["message"]
    assert Door().chat({"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ([("x-priority-class", "rt"), ("x-priority-class", "be")], "x-priority-class"),
        ([("x-slo-ttft-ms", "5"), ("x-slo-ttft-ms", "6")], "x-slo-ttft-ms"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(headers: list[tuple[str, str]], param: str) -> None:
    response = Door().send("POST", CHAT_PATH, json=BODY, headers=headers)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    twice = [headers[0], headers[0]]
    assert Door().send("POST", CHAT_PATH, json=BODY, headers=twice).status_code == 200


@pytest.mark.parametrize("word", ["1_0", "x", "", "0x10"])
def test_a_header_that_is_no_number_is_refused(word: str) -> None:
    response = Door().chat({"x-slo-ttft-ms": word})
    assert (response.status_code, error_of(response)["param"]) == (400, "x-slo-ttft-ms")


@pytest.mark.parametrize(
    ("query", "param"),
    [("files?order=zz", "order"), ("files?limit=0", "limit"), ("batches?order=asc", "order"), ("files?page=2", "page")],
)
def test_a_list_names_the_parameter_that_it_refuses(tmp_path: Path, query: str, param: str) -> None:
    response = Door(settings=Settings(data_dir=tmp_path)).get(f"/v1/{query}")
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert param in error_of(response)["message"]
