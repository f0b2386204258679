"""Answers of engines that count up: missing tokens, repeated tokens, and the end of a stream."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from backend.executors.sim import FIRST_WORD_ID, word_at
from backend.text.sim_tokenizer import FIRST_BYTE_ID
from bench.common.score import RequestRecord, Slos
from bench.common.workload import Arrival
from bench.live.counting import Answer, Count, CountingTarget, count
from bench.live.load import Mix, Query, drive

VOCAB_SIZE = 300
SLOS = Slos(1.0, 1.0)
QUERY = Query("a", True, [40, 41, 42], 10, SLOS)
WHOLE = [word_at(VOCAB_SIZE, 40, 3 + position) for position in range(10)]


def counted(token_ids: list[int], is_whole: bool = True, rest: str = "") -> tuple[int, int, int]:
    found = count([Answer(QUERY, token_ids, rest, is_whole)], VOCAB_SIZE)
    return found.num_missing, found.num_double, found.num_foreign


def test_a_whole_answer_has_nothing_wrong() -> None:
    assert counted(WHOLE) == (0, 0, 0)
    assert count([], VOCAB_SIZE) == Count(0, 0, 0)


def test_an_answer_that_goes_on_elsewhere_counts_on() -> None:
    """There the prompt is longer by the tokens that were sent."""
    assert [word_at(VOCAB_SIZE, 40, len([*QUERY.prompt_ids, *WHOLE[:4]]) + i) for i in range(6)] == WHOLE[4:]


@pytest.mark.parametrize(
    ("token_ids", "is_whole", "expected"),
    [
        ([*WHOLE[:4], *WHOLE[5:]], True, (1, 0, 0)),
        ([*WHOLE[:4], *WHOLE[2:]], True, (0, 2, 1)),  # double, and backwards
        (WHOLE[:7], True, (3, 0, 0)),
        (WHOLE[:7], False, (0, 0, 0)),  # the run ended before it did
        ([*WHOLE[:4], *WHOLE[5:7]], False, (1, 0, 0)),
        ([*WHOLE, word_at(VOCAB_SIZE, 40, 13)], True, (0, 0, 1)),  # one too many
        ([], False, (0, 0, 0)),
    ],
)
def test_what_is_wrong_is_counted(token_ids: list[int], is_whole: bool, expected: tuple[int, int, int]) -> None:
    assert counted(token_ids, is_whole) == expected


def test_text_that_is_no_word_is_foreign() -> None:
    assert counted(WHOLE, rest="?") == (0, 0, 1)


def test_the_first_word_is_the_tokenizers() -> None:
    assert FIRST_WORD_ID == FIRST_BYTE_ID + 256


def events(*token_ids: int, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"text": "".join(f" t{i}" for i in token_ids), "finish_reason": reason}]})


async def served(*lines: str, status: int = 200) -> tuple[RequestRecord, Answer]:
    """Send one request to a server that answers with these events."""

    async def complete(request: web.Request) -> web.StreamResponse:
        assert request.headers["x-class"] == "rt"
        response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write("".join(f"{line}\n\n" for line in lines).encode())
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    target = CountingTarget(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m", "x-class")
    try:
        (record,) = await drive(target, Mix([Arrival(0.0, 3, 3)], [], SLOS, 0.01, 1.0, 0))
    finally:
        await target.close()
        await runner.cleanup()
    return record, next(iter(target.answers.values()))


def test_events_of_several_tokens_are_counted_and_kept() -> None:
    record, answer = asyncio.run(served(f"data: {events(7, 8)}", f"data: {events(9, reason='length')}", "data: [DONE]"))
    assert (len(record.token_times_s), record.error) == (3, None)
    assert (answer.token_ids, answer.rest, answer.is_whole) == ([7, 8, 9], "", True)


@pytest.mark.parametrize(
    ("lines", "status", "error"),
    [
        ([f"data: {events(7, 8)}"], 200, "without a finish reason"),
        ([f"data: {events(7)}", "event: error", 'data: {"message": "gone"}'], 200, "an error ended"),
        ([f"data: {events(7)}", 'data: {"error": "gone"}'], 200, "gone"),
        (["nobody there"], 503, "503: nobody there"),
    ],
)
def test_a_stream_that_does_not_end_well_is_lost(lines: list[str], status: int, error: str) -> None:
    record, answer = asyncio.run(served(*lines, status=status))
    assert error in str(record.error)
    assert not answer.is_whole
