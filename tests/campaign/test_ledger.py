"""Ledger and tokens find every lost, repeated, mixed-up, open or badly refused request, and nothing else."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace

import numpy as np
import pytest

from backend.executors.sim import token_at
from tests.campaign import request_paths, tokens
from tests.campaign.house import SIM
from tests.campaign.ledger import Entry, Fault, Ledger, fault_of, group, kind_of
from tests.campaign.request_paths import End, Reply
from tests.campaign.tokens import NameSearch, tokens_at

NUM_PROMPT, NUM_TOKENS = 11, 8


@pytest.fixture(autouse=True)
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CONNECTIONS", 4)


def made(client_id: str, last_part: str = "3.107") -> list[int]:
    return [token_at(SIM, f"{client_id}#{last_part}", NUM_PROMPT + index) for index in range(NUM_TOKENS)]


def ledger_of(reply: Reply | None, client_id: str = "me") -> Ledger:
    ledger = Ledger(NameSearch(SIM))
    ledger.open(Entry(client_id, "grpc", "rt", NUM_PROMPT, NUM_TOKENS, reply))
    return ledger


def answered(token_ids: list[int]) -> Reply:
    return Reply(End.ANSWERED, token_ids=token_ids, num_responses=1, num_ends=1, finish_reason="length")


@pytest.mark.parametrize("last_part", ["1.0", "2.9", "3.107", "4.39999"])
def test_a_name_is_found_by_its_tokens(last_part: str) -> None:
    assert NameSearch(SIM).find("me", NUM_PROMPT, made("me", last_part)) == f"me#{last_part}"


def test_tokens_at_all_positions_are_those_of_the_executor() -> None:
    for position in (0, 1, 4_095, 10_000_000):
        expected = [token_at(SIM, f"me#1.{handle}", position) for handle in range(10)]
        checksums = np.array([zlib.crc32(b"me#1.%d" % handle) for handle in range(10)], np.uint64)
        assert tokens_at(SIM, checksums, position).tolist() == expected


def test_a_whole_answer_is_no_fault() -> None:
    ledger = ledger_of(answered(made("me")))
    assert ledger.check() == []
    assert ledger.ends() == {"answered": 1}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda good: good[:-1], "lost or repeated"),
        (lambda good: [*good, good[-1]], "lost or repeated"),
        (lambda good: [*good[:-1], good[-2]], "another request or order"),
        (lambda good: [good[1], good[0], *good[2:]], "another request or order"),
        (lambda _: made("you"), "another request or order"),
    ],
    ids=["lost", "repeated", "once lost and once repeated", "swapped", "another's"],
)
def test_wrong_tokens_are_found(spoil: object, kind: str) -> None:
    (fault,) = ledger_of(answered(spoil(made("me")))).check()  # type: ignore[operator]  # a lambda above
    assert kind in fault.kind


def test_the_tokens_of_who_left_are_checked_as_far_as_they_came() -> None:
    reply = Reply(End.LEFT, token_ids=made("me")[:3])
    assert ledger_of(reply).check() == []
    assert len(ledger_of(replace(reply, token_ids=made("you")[:3])).check()) == 1


def test_a_request_without_an_end_is_a_fault() -> None:
    (fault,) = ledger_of(None).check()
    assert fault.kind == "accepted, and never ended"


def test_ends_that_a_phase_brings_about_are_allowed_there_only() -> None:
    down = Reply(End.REFUSED, "ENGINE_DOWN: the engine went away; retry_after_ms=1000", num_ends=1)
    assert ledger_of(down).check(allowed=("engine_down",)) == []
    assert len(ledger_of(down).check(allowed=("overloaded",))) == 1
    assert ledger_of(down).ends() == {"engine_down": 1}


@pytest.mark.parametrize(
    ("reply", "is_fault"),
    [
        (Reply(End.ANSWERED, num_ends=1, status=200), False),
        (Reply(End.REFUSED, "INVALID_REQUEST: top_p: 2 is not in (0, 1]", 400, num_ends=1), False),
        (Reply(End.REFUSED, "failed to parse the request JSON buffer", 400, num_ends=1), False),
        (Reply(End.REFUSED, "not here", 501, num_ends=1), False),
        (Reply(End.REFUSED, "class result not available for output", num_ends=3), False),
        (Reply(End.REFUSED, "INVALID_REQUEST: top_p: 2 is not in (0, 1]", num_ends=2), True),
        (Reply(End.REFUSED, "failed to parse the request JSON buffer", 500, num_ends=1), False),
        (Reply(End.LEFT), False),
        (Reply(End.REFUSED, "INTERNAL: KeyError('x')", 400, num_ends=1), True),
        (Reply(End.REFUSED, "Traceback (most recent call last)", 400, num_ends=1), True),
        (Reply(End.REFUSED, "ENGINE_DOWN: gone", 400, num_ends=1), True),
        (Reply(End.REFUSED, "what", 500, num_ends=1), True),
        (Reply(End.ANSWERED, num_ends=2, status=200), True),
        (Reply(End.HUNG), True),
        (Reply(End.BROKEN, "UNAVAILABLE: socket closed"), True),
    ],
)
def test_answers_and_typed_errors_are_right_and_all_else_is_not(reply: Reply, is_fault: bool) -> None:
    assert (fault_of(reply) is not None) == is_fault


def test_equal_faults_are_counted_together() -> None:
    faults = [Fault(kind_of(f"grpc: broken after {number} of 0x{number:x}f"), f"case {number}") for number in range(3)]
    assert group(faults) == [{"kind": "grpc: broken after N of N", "count": 3, "example": "case 0"}]


def answer_of(received: bytes) -> Reply:
    """Return the reply to a client to whom a server on a free port sends `received` and closes."""

    async def ask() -> Reply:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(received)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await request_paths.ask_http(server.sockets[0].getsockname()[1], b"GET / HTTP/1.1\r\n\r\n", 5.0)

    return asyncio.run(ask())


def test_events_are_read_to_their_end() -> None:
    events = b'data: {"output_ids": 5}\n\ndata: {"output_ids": [6, 7], "finish_reason": "length"}\n\n'
    reply = answer_of(b"HTTP/1.1 200 OK\r\n\r\n" + events)
    assert (reply.end, reply.token_ids, reply.finish_reason, reply.num_ends) == (End.ANSWERED, [5, 6, 7], "length", 1)


@pytest.mark.parametrize(
    ("received", "end", "words"),
    [
        (b"", End.BROKEN, "Remote end closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", End.BROKEN, "IncompleteRead"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"output_ids": 5}\n\n', End.BROKEN, "without a final response"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": "CANCELLED: late"}\n\n', End.REFUSED, "CANCELLED: late"),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": "no"}', End.REFUSED, "no"),
    ],
)
def test_a_body_that_ends_badly_is_told_from_an_error(received: bytes, end: End, words: str) -> None:
    reply = answer_of(received)
    assert reply.end is end
    assert words in reply.words
