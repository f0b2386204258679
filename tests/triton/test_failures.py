"""What goes wrong around a real server: clients that leave, timeouts, an engine or a server that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from backend.wire.names import MODELS
from bench.cancel import ways_to_leave
from tests.triton.servers import PATIENCE_S, START_TIMEOUT_S, Server, plain_server, serving, wait_until
from tests.triton.streams import Answer, Stream

pytestmark = pytest.mark.triton

NOTICED_S = 2.0  # takes up to 0.1 s (bench/cancel.py), on a machine that may stall
LONG = {"text_input": "x", "max_tokens": 4000, "stream": True, "ignore_eos": True}  # half a minute, if nobody ends it


def open_streams(stream: Stream, count: int, model: str = "bros_rt") -> list[Answer]:
    """Open endless requests one by one, each with its first token before the next: a queue of length one suffices."""
    return [open_stream(stream, model) for _ in range(count)]


def open_stream(stream: Stream, model: str) -> Answer:
    answer = stream.send(LONG, model)
    wait_until(lambda: bool(answer.responses) or answer.is_final.is_set(), "the first token")
    assert not answer.errors
    return answer


def num_cancelled(server: Server) -> float:
    return sum(server.metric(f'bros_requests_total{{class="{name}",outcome="cancelled"}}') for name in ("rt", "be"))


def settled_num_cancelled(server: Server) -> float:
    """Return the count once it stands still: what the test before this one cancelled may still be on its way."""
    last, count = -1.0, num_cancelled(server)
    while count != last:
        time.sleep(0.5)
        last, count = count, num_cancelled(server)
    return count


def test_a_grpc_stream_that_is_cancelled_frees_its_requests_and_no_others(sim: Server) -> None:
    before = settled_num_cancelled(sim)
    with Stream(sim.grpc_url) as other:
        (survivor,) = open_streams(other, 1)
        leaving = Stream(sim.grpc_url)
        open_streams(leaving, 4)
        leaving.cancel()
        wait_until(lambda: sim.num_requests() == 1, "cancellation")
        num_tokens = len(survivor.token_ids)
        wait_until(lambda: len(survivor.token_ids) > num_tokens, "the other stream's tokens")
        assert not survivor.is_final.is_set()
    wait_until(lambda: sim.num_requests() == 0, "cancellation")
    wait_until(lambda: num_cancelled(sim) == before + 5, "the count of cancelled requests")


POISON = {
    "half an emoji": r'[{"role": "user", "content": "\ud83d"}]',
    "nested": '[{"role": "user", "content": "hi", "extra": %s}]' % ("[" * 987 + "]" * 987),
    "not JSON": "[" * 100_000,
}


def test_what_is_wrong_with_one_request_ends_no_other(sim: Server) -> None:
    with Stream(sim.grpc_url) as stream:
        survivors = open_streams(stream, 3, "bros")
        for messages in POISON.values():
            status, text = sim.post("bros", {"messages": messages, "max_tokens": 4})
            assert (status, json.loads(text)["error"][:26]) == (400, "INVALID_REQUEST: messages:")
        num_tokens = [len(survivor.token_ids) for survivor in survivors]
        wait_until(lambda: all(len(s.token_ids) > n for s, n in zip(survivors, num_tokens, strict=True)), "tokens")
        assert not any(survivor.is_final.is_set() for survivor in survivors)
    wait_until(lambda: sim.num_requests() == 0, "cancellation")


@pytest.mark.vllm
def test_long_best_effort_prompts_do_not_hold_a_real_time_request(smollm: Server) -> None:
    long_text = "lorem ipsum dolor " * 36_000  # half a second to tokenise, and then too large
    with Stream(smollm.grpc_url) as stream:
        held = [stream.send({"text_input": long_text, "priority_class": "be"}) for _ in range(6)]
        wait_until(lambda: held[0].is_final.is_set(), "the first refusal")
        urgent = stream.ask({"text_input": "hi", "max_tokens": 2, "priority_class": "rt"})
        assert urgent.finish_reason == "length"
        assert not held[-1].is_final.is_set()
        wait_until(lambda: held[-1].is_final.is_set(), "the last refusal")
    assert {answer.errors[0].split(":")[0] for answer in held} == {"TOO_LARGE"}


def test_an_http_client_that_leaves_frees_its_request(sim: Server) -> None:
    address = urlsplit(sim.http_url)
    body = json.dumps({**LONG, "priority_class": "rt"}).encode()
    head = f"POST /v2/models/bros/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(head.encode() + body)
        assert client.recv(100)
        wait_until(lambda: sim.num_requests() == 1, "the request")
    wait_until(lambda: sim.num_requests() == 0, "cancellation")


@pytest.mark.parametrize(
    "way", ["gRPC stream cancelled", "gRPC client killed", "HTTP connection closed", "request timeout"]
)
def test_a_client_that_leaves_is_noticed_soon_and_counted(sim: Server, way: str) -> None:
    before = settled_num_cancelled(sim)
    with ways_to_leave(sim.grpc_url, sim.http_url) as ways:
        ways[way](0.1)
        wait_until(lambda: sim.num_requests() == 0, way, NOTICED_S)
    wait_until(lambda: num_cancelled(sim) == before + 1, "the count of cancelled requests")


def test_a_request_ends_with_an_error_when_its_own_timeout_runs_out(sim: Server) -> None:
    with Stream(sim.grpc_url) as stream:
        answer = stream.ask(LONG, "bros_rt", timeout=300_000)
    assert answer.errors == ["CANCELLED: the request's timeout of 300 ms ran out"]
    assert answer.num_finals == 1
    assert len(answer.token_ids) < LONG["max_tokens"]
    status, text = sim.post("bros", {**LONG, "stream": False, "timeout": 200_000})
    assert (status, json.loads(text)["error"]) == (400, "CANCELLED: the request's timeout of 200 ms ran out")
    assert sim.num_requests() == 0


def test_refusals_are_counted(sim: Server) -> None:
    series = 'bros_requests_total{class="rt",outcome="invalid_request"}'
    before = sim.metric(series)
    assert sim.post("bros_rt", {"text_input": ""})[0] == 400
    wait_until(lambda: sim.metric(series) == before + 1, "the count of refusals")


def test_every_request_of_a_storm_ends_exactly_once(sim: Server) -> None:
    chance = random.Random(7)

    def client(seed: int) -> list[Answer]:
        mine = random.Random(seed)
        with Stream(sim.grpc_url) as stream:
            answers = []
            for _ in range(8):
                inputs = {"text_input": "x" * mine.randint(1, 500), "max_tokens": mine.choice([1, 5, 40])}
                kind = mine.choice(["whole", "streamed", "bad", "late"])
                inputs |= {"stream": kind == "streamed"} | ({"top_p": 2.0} if kind == "bad" else {})
                options = {"timeout": 30_000} if kind == "late" else {}
                answers.append(stream.send(inputs, mine.choice(["bros", "bros_rt", "bros_be"]), **options))
            for answer in answers:
                assert answer.is_final.wait(2 * PATIENCE_S)
        return answers

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for found in pool.map(client, chance.sample(range(1000), 8)) for answer in found]
    assert [answer.num_finals for answer in answers] == [1] * 64
    assert all((answer.finish_reason is None) == bool(answer.errors) for answer in answers)
    assert sim.num_requests() == 0


def engine_of(server: Server) -> psutil.Process:
    """Return the engine process below a launcher or a plain server, whose stubs may each have started one: those that
    find another one end."""
    wait_until(lambda: len(engines_of(server)) == 1, "the end of all engines but one")
    return engines_of(server)[0]


def engines_of(server: Server) -> list[psutil.Process]:
    engines = []
    for process in psutil.Process(server.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            if "backend.server.engine_process" in process.cmdline():
                engines.append(process)
    return engines


def is_served(server: Server, model: str) -> bool:
    return server.post(model, {"text_input": "x", "max_tokens": 1})[0] == 200


def assert_engine_death_is_survived(server: Server) -> None:
    with Stream(server.grpc_url) as stream:
        answers = [answer for model in MODELS for answer in open_streams(stream, 2, model)]
        os.kill(engine_of(server).pid, signal.SIGKILL)
        wait_until(lambda: all(answer.is_final.is_set() for answer in answers), "the ends of open streams")
        assert {error for answer in answers for error in answer.errors} == {
            "ENGINE_DOWN: the engine went away during this request; retry_after_ms=1000"
        }
        assert [answer.num_finals for answer in answers] == [1] * 6
        refused = stream.ask({"text_input": "x"})
        assert refused.errors[0].startswith("ENGINE_DOWN: ")
        assert "retry_after_ms=" in refused.errors[0]
    wait_until(lambda: all(is_served(server, model) for model in MODELS), "a new engine", START_TIMEOUT_S)


def test_the_death_of_the_engine_is_told_at_once_and_bros_serve_starts_another(tmp_path: Path) -> None:
    with serving(tmp_path / "log", "--executor", "sim") as server:
        assert_engine_death_is_survived(server)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A plain tritonserver whose `bros_be` lets two requests into the engine and one into the queue."""

    def tighten(repository: Path) -> None:
        path = repository / "bros_be" / "config.pbtxt"
        text = path.read_text()
        for old, new in (('string_value: "128"', 'string_value: "1"'), ("max_queue_size: 4096", "max_queue_size: 1")):
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)

    with plain_server(tmp_path_factory.mktemp("plain"), {"executor": "sim"}, tighten) as server:
        yield server


def test_a_plain_tritonserver_starts_its_engine_and_starts_it_again_when_it_dies(alone: Server) -> None:
    assert_engine_death_is_survived(alone)


def test_best_effort_beyond_its_places_waits_in_tritons_queue_and_beyond_that_is_refused(alone: Server) -> None:
    with Stream(alone.grpc_url) as stream:
        open_streams(stream, 2, "bros_be")
        answers = [stream.send(LONG, "bros_be") for _ in range(6)]
        wait_until(lambda: sum(bool(answer.errors) for answer in answers) >= 3, "refusals")
        assert all("maximum queue size" in error for answer in answers for error in answer.errors)
        assert not all(answer.errors for answer in answers)
        assert alone.num_requests() == 2
        assert stream.ask({"text_input": "x", "max_tokens": 1}, "bros_rt").finish_reason == "length"
    wait_until(lambda: alone.num_requests() == 0, "cancellation")


def test_a_killed_server_leaves_no_process_behind(tmp_path: Path) -> None:
    def as_it_is(_: Path) -> None: ...

    with plain_server(tmp_path, {"executor": "sim", "service": {"unused_exit_s": 2.0}}, as_it_is) as server:
        launched = psutil.Process(server.pid)
        wait_until(lambda: len(launched.children(recursive=True)) == 5, "four stubs and one engine", START_TIMEOUT_S)
        everything = launched.children(recursive=True)
        with Stream(server.grpc_url) as stream:
            open_streams(stream, 8)
            os.kill(server.pid, signal.SIGKILL)
            _, alive = psutil.wait_procs(everything, timeout=PATIENCE_S)
            assert not alive
