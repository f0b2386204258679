"""The outbox: text from tokens, when it is sent, and one end for each stream whoever ends it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import pytest

from backend.core.errors import ExecutorError, OverloadedError
from backend.core.plan import FailedRequest, RankedLogProb, StepOutput
from backend.core.request import FinishReason, PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.server.connection import Connection
from backend.server.metrics import Recorder
from backend.server.outbox import Outbox
from backend.text.sim_tokenizer import SimTokenizer
from backend.wire.protocol import Chunk, Chunks, Generation, Sampling, ToStub
from tests.backend.serving import WAIT_S

TOKENIZER = SimTokenizer(vocab_size=32_000, eos_token_id=2)
NEVER_S = 1e6
BOS_ID = 1  # special: it shows no text
SAY_IDS = (BOS_ID, *TOKENIZER.encode("say"))


class Mailbox:
    """A connection that keeps each message sent."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[ToStub] = queue.SimpleQueue()

    def send(self, message: ToStub) -> None:
        self.messages.put(message)

    def next(self) -> tuple[Chunk, ...]:
        """Wait for the next message and return its chunks."""
        message = self.messages.get(timeout=WAIT_S)
        assert isinstance(message, Chunks)
        return message.chunks


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def cancelled() -> list[RequestId]:
    return []


@pytest.fixture
def make_outbox(cancelled: list[RequestId]) -> Iterator[Callable[[float], Outbox]]:
    made: list[Outbox] = []

    def make(be_coalesce_s: float, rt_coalesce_s: float = 0.0) -> Outbox:
        coalesce_s = {PriorityClass.REAL_TIME: rt_coalesce_s, PriorityClass.BEST_EFFORT: be_coalesce_s}
        outbox = Outbox(TOKENIZER, coalesce_s, Recorder(), cancelled.append)
        made.append(outbox)
        return outbox

    yield make
    for outbox in made:
        outbox.close()


@pytest.fixture
def outbox(make_outbox: Callable[[float], Outbox]) -> Outbox:
    return make_outbox(NEVER_S)


def open_stream(
    outbox: Outbox,
    mailbox: Mailbox,
    handle: int = 1,
    echo: str = "",
    stop_ids: Iterable[int] = (),
    prompt_ids: tuple[int, ...] = (5,),
    **options: Any,
) -> Request:
    """Open a stream; return its request."""
    generation = Generation(**{"priority_class": "rt", "is_streamed": True, **options})
    priority_class = PriorityClass(generation.priority_class)
    slo = Slo(1.0, 1.0) if priority_class is PriorityClass.REAL_TIME else None
    params = SamplingParams(stop_token_ids=frozenset(stop_ids))
    request = Request(RequestId(f"r{handle}"), priority_class, prompt_ids, params, arrival_s=0.0, slo=slo)
    outbox.open(handle, cast(Connection, mailbox), generation, request, echo)
    return request


def tokens(request: Request, text: str | bytes) -> StepOutput:
    """Return a step's output that yields the bytes of `text`."""
    data = text if isinstance(text, bytes) else text.encode()
    request.first_token_s = request.first_token_s or 1.0
    return StepOutput(tokens=[(request, byte + 3, -0.5) for byte in data])


def finished(request: Request, reason: FinishReason = FinishReason.LENGTH) -> StepOutput:
    request.finish_reason = reason
    return StepOutput(finished=(request,))


def test_all_tokens_of_a_step_travel_in_one_message(outbox: Outbox, mailbox: Mailbox) -> None:
    requests = [open_stream(outbox, mailbox, handle) for handle in range(3)]
    outbox.emit(StepOutput(tokens=[token for request in requests for token in tokens(request, "a").tokens]))
    assert [(chunk.handle, chunk.text) for chunk in mailbox.next()] == [(0, "a"), (1, "a"), (2, "a")]


def test_a_character_is_sent_when_it_is_whole(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox)
    first, second = "ü".encode()[:1], "ü".encode()[1:]
    outbox.emit(tokens(request, first))
    assert mailbox.next()[0].text == ""
    outbox.emit(tokens(request, second))
    assert mailbox.next()[0].text == "ü"


def test_half_a_character_at_the_end_is_replaced(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox)
    outbox.emit(tokens(request, b"\xc3"))
    mailbox.next()
    outbox.emit(finished(request))
    assert mailbox.next()[0].text == "\ufffd"


def test_stop_words_are_not_looked_for_before_min_tokens(outbox: Outbox, mailbox: Mailbox) -> None:
    """Like an end token, a stop word ends nothing before `min_tokens`; an earlier one stays in the text."""
    request = open_stream(outbox, mailbox, stop_words=("x",), sampling=Sampling(min_tokens=3), is_streamed=False)
    outbox.emit(tokens(request, "xaxb"))
    (chunk,) = mailbox.next()
    assert chunk.text == "xa"
    assert chunk.end is not None
    assert (chunk.end.finish_reason, len(chunk.token_ids)) == ("stop", 3)


@pytest.mark.parametrize(("min_tokens", "text", "num_tokens"), [(2, "a", 3), (3, "a", 3), (4, "axyb", 6)])
def test_a_stop_word_counts_where_it_ends(
    outbox: Outbox, mailbox: Mailbox, min_tokens: int, text: str, num_tokens: int
) -> None:
    """A word that begins before `min_tokens` and ends after it ends the answer, and stays out of it."""
    request = open_stream(
        outbox, mailbox, stop_words=("xy",), sampling=Sampling(min_tokens=min_tokens), is_streamed=False
    )
    outbox.emit(tokens(request, "axybxyc"))
    (chunk,) = mailbox.next()
    assert (chunk.text, len(chunk.token_ids)) == (text, num_tokens)
    assert chunk.end is not None
    assert chunk.end.finish_reason == "stop"


@pytest.mark.parametrize(("answer", "min_tokens", "text"), [("axb", 0, "ax"), ("bab", 2, "ba"), ("b", 0, "")])
def test_a_stop_token_that_ends_an_answer_is_no_part_of_its_text(
    outbox: Outbox, mailbox: Mailbox, answer: str, min_tokens: int, text: str
) -> None:
    """As with a stop word: vLLM's `include_stop_str_in_output` is false here. One before `min_tokens` ends nothing."""
    sampling = Sampling(min_tokens=min_tokens)
    request = open_stream(outbox, mailbox, stop_ids=[ord("b") + 3], sampling=sampling, is_streamed=False)
    outbox.emit(tokens(request, answer))
    outbox.emit(finished(request, FinishReason.STOP))
    (chunk,) = mailbox.next()
    assert chunk.text == text
    assert len(chunk.token_ids) == len(answer)


def test_half_a_character_at_the_end_may_be_a_stop_word(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox, stop_words=("a\ufffd",), is_streamed=False)
    outbox.emit(tokens(request, b"ba\xc3"))
    outbox.emit(finished(request))
    (chunk,) = mailbox.next()
    assert chunk.text == "b"
    assert chunk.end is not None
    assert chunk.end.finish_reason == "stop"


def test_best_effort_tokens_wait_for_company(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox, priority_class="be")
    outbox.emit(tokens(request, "a"))
    assert mailbox.next()[0].text == "a"
    for char in "bc":
        outbox.emit(tokens(request, char))
    outbox.emit(finished(request))
    (chunk,) = mailbox.next()
    assert chunk.text == "bc"
    assert chunk.end is not None


def test_real_time_tokens_wait_only_where_the_operator_says_so(
    make_outbox: Callable[..., Outbox], mailbox: Mailbox
) -> None:
    outbox = make_outbox(0.0, rt_coalesce_s=NEVER_S)
    request = open_stream(outbox, mailbox)
    outbox.emit(tokens(request, "a"))
    assert mailbox.next()[0].text == "a"
    for char in "bc":
        outbox.emit(tokens(request, char))
    outbox.emit(finished(request))
    assert mailbox.next()[0].text == "bc"


def test_best_effort_tokens_that_waited_are_sent_without_further_ones(
    make_outbox: Callable[[float], Outbox], mailbox: Mailbox
) -> None:
    outbox = make_outbox(0.02)
    request = open_stream(outbox, mailbox, priority_class="be")
    outbox.emit(tokens(request, "a"))
    assert mailbox.next()[0].text == "a"
    outbox.emit(tokens(request, "b"))
    assert mailbox.next()[0].text == "b"


def test_a_stop_word_is_never_sent_even_in_pieces_and_cancels_the_rest(
    outbox: Outbox, mailbox: Mailbox, cancelled: list[RequestId]
) -> None:
    request = open_stream(outbox, mailbox, stop_words=("END",))
    outbox.emit(tokens(request, "okE"))
    assert mailbox.next()[0].text == "ok"
    outbox.emit(tokens(request, "NDmore"))
    (chunk,) = mailbox.next()
    assert chunk.text == ""
    assert chunk.end is not None
    assert chunk.end.finish_reason == "stop"
    assert cancelled == [request.request_id]
    outbox.emit(finished(request, FinishReason.CANCELLED))  # what the engine makes of it: no second end
    other = open_stream(outbox, mailbox, 2)
    outbox.emit(finished(other))
    assert [chunk.handle for chunk in mailbox.next()] == [2]


def test_the_beginning_of_a_stop_word_is_sent_when_the_text_ends(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox, stop_words=("END",), is_streamed=False)
    outbox.emit(tokens(request, "thEN"))
    outbox.emit(finished(request))
    assert mailbox.next()[0].text == "thEN"


def test_a_whole_answer_has_the_prompt_in_front_when_repeated(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox, echo="say ", is_streamed=False)
    outbox.emit(tokens(request, "it"))
    outbox.emit(finished(request))
    assert mailbox.next()[0].text == "say it"


CHAT = {"messages": '[{"role": "user", "content": "say"}]'}


@pytest.mark.parametrize(
    ("options", "prompt_ids", "expected"),
    [
        ({"text": "say"}, SAY_IDS, " it"),
        ({"token_ids": SAY_IDS}, SAY_IDS, " it"),
        ({"token_ids": (BOS_ID,)}, (BOS_ID,), "it"),
        (CHAT, SAY_IDS, "it"),
        ({**CHAT, "echoes_prompt": True}, SAY_IDS, "say it"),
        ({"text": "say", "echoes_prompt": True}, SAY_IDS, "say it"),
        ({"token_ids": (BOS_ID,), "echoes_prompt": True}, (BOS_ID,), "it"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_first_space_of_an_answer_goes_only_where_it_begins_the_text(
    options: dict[str, Any],
    prompt_ids: tuple[int, ...],
    expected: str,
    is_streamed: bool,
    outbox: Outbox,
    mailbox: Mailbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SimTokenizer, "strips_first_space", True)
    echo = TOKENIZER.decode(prompt_ids) if "echoes_prompt" in options else ""
    request = open_stream(outbox, mailbox, echo=echo, prompt_ids=prompt_ids, is_streamed=is_streamed, **options)
    outbox.emit(tokens(request, " it"))
    outbox.emit(finished(request))
    assert whole_answer(mailbox) == (expected, "length")


@pytest.mark.parametrize("stop_word", [" it", "it", "i", " ", "x"])
def test_a_stop_word_sees_the_same_text_whether_or_not_the_prompt_is_repeated(
    stop_word: str, outbox: Outbox, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimTokenizer, "strips_first_space", True)
    answers = []
    for echo in ("", "say"):
        options: dict[str, Any] = {"text": "say", "echoes_prompt": bool(echo), "stop_words": (stop_word,)}
        request = open_stream(outbox, mailbox, echo=echo, prompt_ids=SAY_IDS, **options)
        outbox.emit(tokens(request, " it"))
        outbox.emit(finished(request))
        text, reason = whole_answer(mailbox)
        answers.append((text.removeprefix(echo), reason))
    assert answers[0] == answers[1]
    assert answers[0][1] == ("length" if stop_word == "x" else "stop")


def whole_answer(mailbox: Mailbox) -> tuple[str, str]:
    """Wait for the end of the one open stream; return its text and finish reason."""
    text = ""
    while True:
        for chunk in mailbox.next():
            text += chunk.text
            if chunk.end is not None:
                return text, str(chunk.end.finish_reason)


def test_log_probs_come_only_when_wanted(outbox: Outbox, mailbox: Mailbox) -> None:
    for handle, wants in ((1, True), (2, False)):
        request = open_stream(outbox, mailbox, handle, wants_log_probs=wants)
        outbox.emit(tokens(request, "ab"))
        assert mailbox.next()[0].log_probs == ((-0.5, -0.5) if wants else None)


def test_the_likeliest_tokens_travel_with_theirs(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox, wants_log_probs=True)
    ranked = RankedLogProb(-0.5, [(7, -0.5), (8, -1.5)])
    outbox.emit(StepOutput(tokens=[(request, 10, ranked), (request, 11, ranked)]))
    (chunk,) = mailbox.next()
    assert chunk.log_probs == (-0.5, -0.5)
    assert (chunk.top_ids, chunk.top_log_probs) == ((7, 8, 7, 8), (-0.5, -1.5, -0.5, -1.5))
    outbox.emit(tokens(request, "a"))
    outbox.emit(finished(request))
    assert mailbox.next()[0].top_ids == ()


def test_a_failed_request_ends_with_its_error(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox)
    outbox.emit(StepOutput(failed=(FailedRequest(request, ExecutorError("the fan is stuck")),)))
    end = mailbox.next()[0].end
    assert end is not None
    assert (end.error_code, end.error_message) == ("EXECUTOR_FAILED", "the fan is stuck")


def test_a_stream_ends_once_whoever_comes_first(outbox: Outbox, mailbox: Mailbox) -> None:
    request = open_stream(outbox, mailbox)
    outbox.fail(request.request_id, OverloadedError("full", 0.1))
    outbox.fail(request.request_id, OverloadedError("full", 0.1))
    outbox.emit(finished(request))
    assert mailbox.next()[0].end is not None
    assert outbox.wait_until_idle(0.0)
    outbox.close()
    assert mailbox.messages.empty()


def test_a_lost_connection_cancels_its_requests_and_no_others(
    outbox: Outbox, mailbox: Mailbox, cancelled: list[RequestId]
) -> None:
    other = Mailbox()
    mine, theirs = open_stream(outbox, mailbox, 1), open_stream(outbox, other, 2)
    outbox.drop(cast(Connection, mailbox))
    assert cancelled == [mine.request_id]
    outbox.emit(finished(theirs))
    assert other.next()[0].end is not None
    assert outbox.wait_until_idle(WAIT_S)


class Broken:
    """Stands for a detokenizer or a search for stop words that raises."""

    def push(self, *_: object) -> str:
        raise IndexError("no such word")

    flush = push


def test_an_answer_that_cannot_be_put_into_words_ends_alone(
    outbox: Outbox, mailbox: Mailbox, cancelled: list[RequestId]
) -> None:
    bad, good = open_stream(outbox, mailbox, 1), open_stream(outbox, mailbox, 2)
    outbox._streams[bad.request_id].detokenizer = cast(Any, Broken())
    outbox.emit(StepOutput(tokens=[*tokens(bad, "a").tokens, *tokens(good, "b").tokens]))
    lost, served = mailbox.next()
    assert lost.end is not None
    assert (lost.handle, lost.end.error_code) == (1, "INTERNAL")
    assert (served.handle, served.text, served.end) == (2, "b", None)
    assert cancelled == [bad.request_id]


def test_an_answer_that_fails_at_its_end_ends_with_an_error(outbox: Outbox, mailbox: Mailbox) -> None:
    bad, good = open_stream(outbox, mailbox, 1), open_stream(outbox, mailbox, 2)
    outbox._streams[bad.request_id].detokenizer = cast(Any, Broken())
    outbox.emit(StepOutput(finished=(finished(bad).finished[0], finished(good).finished[0])))
    ends = [chunk.end for chunk in mailbox.next()]
    assert [(end.error_code, end.finish_reason) for end in ends if end] == [("INTERNAL", None), (None, "length")]


def test_a_chunk_that_makes_no_message_fails_alone(
    outbox: Outbox, mailbox: Mailbox, cancelled: list[RequestId], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = mailbox.send

    def send(message: ToStub) -> None:
        assert isinstance(message, Chunks)
        if any(chunk.text == "bad" for chunk in message.chunks):
            raise ValueError("cannot be encoded")
        put(message)

    monkeypatch.setattr(mailbox, "send", send)
    bad, good = open_stream(outbox, mailbox, 1), open_stream(outbox, mailbox, 2)
    outbox.emit(StepOutput(tokens=[*tokens(bad, "bad").tokens, *tokens(good, "ok").tokens]))
    (lost,), (served,) = mailbox.next(), mailbox.next()
    assert lost.end is not None
    assert (lost.handle, lost.end.error_code) == (1, "INTERNAL")
    assert (served.handle, served.text) == (2, "ok")
    assert cancelled == [bad.request_id]
