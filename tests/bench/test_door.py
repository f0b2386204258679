"""The cost of the front door and the chat beside a batch, on ways that cost nothing and requests made by hand."""

from __future__ import annotations

import argparse
import json
import socket
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from backend.core.request import PriorityClass
from bench.beside_batch import Talk, batch_lines, summary
from bench.door import compare, describe, measure
from bench.live.door import door_client
from bench.overhead import Flight, Send
from client.batch.lines import parse_line
from client.openai.chat import parse_chat


def send_for_free(_prompt: Sequence[int], num_tokens: int, _priority_class: PriorityClass) -> Flight:
    flight = Flight()
    flight.note(0, has_ended=False)
    flight.note(num_tokens, has_ended=True)
    return flight


def make_round(speed: float, ratio: float, added_ms: float) -> dict[str, Any]:
    """A round on a machine of this speed, which goes up by a tenth meanwhile."""
    rates = {"grpc": speed, "door": 1.05 * speed * ratio, "grpc_again": 1.1 * speed}
    return {"ttft_ms": {"grpc": 20.0, "door": 20.0 + added_ms, "grpc_again": 20.0}, "rt": rates, "be": rates}


def test_every_round_measures_grpc_before_and_after_the_front_door() -> None:
    ways: dict[str, Send] = dict.fromkeys(("grpc", "door"), send_for_free)
    rounds = measure(ways, num_rounds=2)
    assert [set(each["rt"]) for each in rounds] == [{"grpc", "door", "grpc_again"}] * 2
    assert "front door" in describe({"executor": "sim", "num_streams": 32, **compare(rounds)})


def test_costs_are_of_a_round_and_not_of_a_machine_that_wanders() -> None:
    found = compare([make_round(speed, 0.9, added_ms=2.0) for speed in (100.0, 400.0, 250.0)])
    assert found["throughput_ratio"] == {"rt": pytest.approx(0.9), "be": pytest.approx(0.9)}
    assert found["added_ttft_ms"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("path", "piece"), [("/v1/completions", b'"text":"hi"'), ("/v1/chat/completions", b'"delta":{"content":"hi"}')]
)
def test_the_lean_client_sees_the_first_piece_and_the_number_of_tokens(path: str, piece: bytes) -> None:
    seen: list[tuple[int, bool]] = []
    ended = threading.Event()

    def note(num_tokens: int, has_ended: bool) -> None:
        seen.append((num_tokens, has_ended))
        if has_ended:
            ended.set()

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        door_client(f"http://127.0.0.1:{listening.getsockname()[1]}", path) as post,
    ):
        post({"max_tokens": 2}, note)
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(65536).startswith(f"POST {path} HTTP/1.1\r\n".encode())
            connection.sendall(b'HTTP/1.1 200 OK\r\n\r\ndata: {"delta":{"role":"assistant","content":""}}\n\n')
            connection.sendall(b"data: {" + piece + b"}\n\n")
            connection.sendall(b'data: {"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n')
        assert ended.wait(30)
    assert seen == [(0, False), (2, True)]


def make_talk(ttft_s: float, tpot_s: float, num_tokens: int = 11) -> Talk:
    return Talk(0.0, ttft_s, ttft_s + tpot_s * (num_tokens - 1), num_tokens)


def test_a_chat_meets_its_slo_when_both_its_times_do() -> None:
    talks = [make_talk(0.5, 0.05), make_talk(2.5, 0.05), make_talk(0.5, 0.2), make_talk(1.9, 0.09)]
    found = summary(talks, argparse.Namespace(ttft_slo_ms=2000.0, tpot_slo_ms=100.0))
    assert (found["num_requests"], found["attainment"]) == (4, 0.5)
    assert found["ttft_ms"]["p50"] == pytest.approx(1200.0)


def test_the_batch_is_one_that_the_endpoint_takes() -> None:
    lines = batch_lines(3, 8, np.random.default_rng(0)).splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["line-0", "line-1", "line-2"]
    asked = parse_chat(json.loads(parse_line(0, lines[0]).body))
    assert asked.options["max_tokens"] == 8
