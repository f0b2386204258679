"""Requests on their way into the engine: RT behind no BE text, order, cancellation, bounds, and one answer each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from backend.config import ServiceSettings
from backend.core.errors import InvalidRequestError, OverloadedError
from backend.core.request import PriorityClass, RequestId
from backend.engine.engine import Cancel, Command, Submit
from backend.server.connection import Connection
from backend.server.intake import Abilities, Intake
from backend.server.intake_queue import IntakeQueue
from backend.server.metrics import Recorder
from backend.server.outbox import Outbox
from backend.text.sim_tokenizer import SimTokenizer
from backend.wire.protocol import Chunk, Chunks, End, Sampling, ToStub
from backend.wire.protocol import Submit as SubmitMessage
from tests.backend.serving import WAIT_S, make_generation

SLOW_TEXT = "slow" * 1000  # longer than the caller's thread tokenises
LONG_TEXT = "slow" * 16_000  # for a lane of its own


class GatedTokenizer(SimTokenizer):
    """Stands still over texts that begin with `slow` until it is let go; breaks over `broken`."""

    def __init__(self) -> None:
        super().__init__(vocab_size=32_000, eos_token_id=2)
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.may_go_on = threading.Event()

    def encode(self, text: str) -> list[int]:
        if text.startswith("slow"):
            self.begun.put(text)
            assert self.may_go_on.wait(WAIT_S)
        if text == "broken":
            raise IndexError("no such word")
        return super().encode(text)


class Stub:
    """A connection that keeps how requests ended."""

    def __init__(self, name: str = "stub") -> None:
        self.name = name
        self.ends: queue.SimpleQueue[tuple[int, End]] = queue.SimpleQueue()

    def request_id(self, handle: int, _client_id: str) -> RequestId:
        return RequestId(f"{self.name}.{handle}")

    def send(self, message: ToStub) -> None:
        assert isinstance(message, Chunks)
        for chunk in message.chunks:
            assert isinstance(chunk, Chunk)
            assert chunk.end is not None
            self.ends.put((chunk.handle, chunk.end))

    def next_end(self) -> tuple[int, End]:
        return self.ends.get(timeout=WAIT_S)


class Door:
    """An intake queue between a stub and an engine that only keeps the requests sent to it."""

    def __init__(self, max_waiting_bytes: int) -> None:
        self.stub = Stub()
        self.tokenizer = GatedTokenizer()
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.post: Callable[[Command], None] = self.commands.put
        self.metrics = Recorder()
        self.outbox = Outbox(self.tokenizer, dict.fromkeys(PriorityClass, 0.0), self.metrics, lambda _: None)
        intake = Intake(self.tokenizer, ServiceSettings(), 8192, 32_000, self.abilities())
        self.queue = IntakeQueue(intake, self.outbox, lambda c: self.post(c), self.metrics, max_waiting_bytes)

    def abilities(self) -> Abilities:
        """Those of an executor that knows no schema but `{}`."""
        return Abilities("gated", self.compile_schema, is_checked=lambda schema: schema == "{}")

    def compile_schema(self, schema: str, _: PriorityClass) -> None:
        """As an executor that compiles by itself; `slow` takes its time, `bad` is none."""
        if schema == "bad":
            raise InvalidRequestError("json_schema: bad")
        if schema == "slow":
            self.tokenizer.begun.put(schema)
            assert self.tokenizer.may_go_on.wait(WAIT_S)

    def submit(self, handle: int, text: str | None, priority_class: str = "be", **options: Any) -> None:
        message = SubmitMessage(
            handle, "", float(handle), make_generation(text=text, priority_class=priority_class, **options)
        )
        self.queue.submit(cast(Connection, self.stub), message)

    def cancel(self, handle: int, *, timed_out: bool = False) -> None:
        self.queue.cancel(cast(Connection, self.stub), handle, "", timed_out=timed_out)

    def hold(self, handle: int, priority_class: str = "be", text: str = SLOW_TEXT) -> None:
        """Submit a text, and return when it is being tokenised."""
        self.submit(handle, text, priority_class)
        self.tokenizer.begun.get(timeout=WAIT_S)

    def next_command(self) -> tuple[type[Command], str]:
        """Wait for the engine's next command; return its kind and the request's name."""
        command = self.commands.get(timeout=WAIT_S)
        assert isinstance(command, (Submit, Cancel))
        return type(command), command.request.request_id if isinstance(command, Submit) else command.request_id

    def close(self) -> None:
        self.tokenizer.may_go_on.set()
        self.queue.close()
        self.outbox.close()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door(max_waiting_bytes=20_000)
    yield door
    door.close()


@pytest.fixture
def roomy_door() -> Iterator[Door]:
    """A door at which long texts may wait."""
    door = Door(max_waiting_bytes=2_000_000)
    yield door
    door.close()


def test_rt_does_not_wait_for_a_be_text(door: Door) -> None:
    door.hold(1)
    door.submit(2, "hi", "rt")
    door.submit(3, "long " * 1000, "rt")
    assert [door.next_command() for _ in range(2)] == [(Submit, "stub.2"), (Submit, "stub.3")]


def test_requests_of_a_class_reach_the_engine_in_their_order(door: Door) -> None:
    for priority_class, first in (("be", 1), ("rt", 11)):
        door.hold(first, priority_class)
        door.submit(first + 1, "hi", priority_class)
        door.submit(first + 2, "long " * 1000, priority_class)
        door.submit(first + 3, "hi", priority_class)
    assert door.commands.empty()
    door.tokenizer.may_go_on.set()
    arrived = [door.next_command()[1] for _ in range(8)]
    for first in (1, 11):
        mine = [f"stub.{first + index}" for index in range(4)]
        assert [name for name in arrived if name in mine] == mine


@pytest.mark.parametrize("priority_class", ["rt", "be"])
@pytest.mark.parametrize("schema", [None, "{}"], ids=["plain", "schema"])
def test_no_short_text_waits_for_a_long_one(roomy_door: Door, priority_class: str, schema: str | None) -> None:
    sampling = Sampling(json_schema=schema)
    for handle in range(3):
        roomy_door.submit(handle, LONG_TEXT, priority_class, sampling=sampling)
    roomy_door.tokenizer.begun.get(timeout=WAIT_S)
    roomy_door.submit(10, "hi", priority_class, sampling=sampling)
    assert roomy_door.next_command() == (Submit, "stub.10")


def test_tools_count_as_text_since_a_template_writes_them_into_the_prompt(roomy_door: Door) -> None:
    roomy_door.hold(0, "rt", LONG_TEXT)
    messages, tools = '[{"role": "user", "content": "hi"}]', "[" + " " * 40_000 + "]"
    roomy_door.submit(1, None, "rt", messages=messages, tools=tools)
    roomy_door.submit(2, "hi", "rt")
    assert roomy_door.next_command() == (Submit, "stub.2")
    assert roomy_door.commands.empty()


def test_of_long_texts_the_shortest_goes_first_and_one_in_four_is_the_oldest(roomy_door: Door) -> None:
    """One client's longest texts do not keep the shorter ones of others waiting, and do not starve themselves."""
    roomy_door.hold(0, "rt", LONG_TEXT)
    lengths = {1: 60_000, 2: 59_000, 3: 50_000, 4: 40_000, 5: 55_000, 6: 35_000}
    for handle, num_chars in lengths.items():
        roomy_door.submit(handle, "x" * num_chars, "rt")
    roomy_door.cancel(6)
    assert roomy_door.stub.next_end() == (6, End(finish_reason="cancelled"))
    roomy_door.tokenizer.may_go_on.set()
    read = [roomy_door.stub.next_end() for _ in range(6)]
    assert {end.error_code for _, end in read} == {"TOO_LARGE"}
    assert [handle for handle, _ in read] == [0, 4, 3, 1, 5, 2]


def test_among_new_schemas_a_short_text_overtakes_long_ones(roomy_door: Door) -> None:
    roomy_door.submit(0, "hi", "rt", sampling=Sampling(json_schema="slow"))
    roomy_door.tokenizer.begun.get(timeout=WAIT_S)
    for handle in (1, 2):
        roomy_door.submit(handle, "slow" * 10_000, "rt", sampling=Sampling(json_schema="new"))
    roomy_door.submit(3, "hi", "rt", sampling=Sampling(json_schema="new"))
    roomy_door.tokenizer.may_go_on.set()
    assert [roomy_door.next_command()[1] for _ in range(2)] == ["stub.0", "stub.3"]


def test_among_new_schemas_a_short_one_overtakes_long_ones(roomy_door: Door) -> None:
    roomy_door.submit(0, "hi", "rt", sampling=Sampling(json_schema="slow"))
    roomy_door.tokenizer.begun.get(timeout=WAIT_S)
    for handle in (1, 2):
        roomy_door.submit(handle, "hi", "rt", sampling=Sampling(json_schema=str(handle) * 10_000))
    roomy_door.submit(3, "hi", "rt", sampling=Sampling(json_schema="new"))
    roomy_door.tokenizer.may_go_on.set()
    assert [roomy_door.next_command()[1] for _ in range(2)] == ["stub.0", "stub.3"]


def test_a_request_that_is_cancelled_while_it_waits_ends_at_once_and_never_reaches_the_engine(door: Door) -> None:
    door.hold(1)
    door.submit(2, "hi")
    door.submit(3, "hi")
    door.cancel(2)
    handle, end = door.stub.next_end()
    assert (handle, end.finish_reason, end.error_code) == (2, "cancelled", None)
    door.tokenizer.may_go_on.set()
    assert [door.next_command() for _ in range(2)] == [(Submit, "stub.1"), (Submit, "stub.3")]


def test_a_request_whose_timeout_runs_out_while_it_waits_ends_with_an_error(door: Door) -> None:
    door.hold(1)
    door.submit(2, "hi", timeout_s=0.2)
    door.cancel(2, timed_out=True)
    _, end = door.stub.next_end()
    assert (end.error_code, end.error_message) == ("CANCELLED", "the request's timeout of 200 ms ran out")


def test_a_request_that_is_cancelled_while_it_is_tokenised_is_cancelled_in_the_engine(door: Door) -> None:
    door.hold(1)
    door.cancel(1)
    door.tokenizer.may_go_on.set()
    assert [door.next_command() for _ in range(2)] == [(Submit, "stub.1"), (Cancel, "stub.1")]


def test_a_request_that_is_in_the_engine_is_cancelled_there(door: Door) -> None:
    door.submit(1, "hi", "rt")
    door.cancel(1)
    assert [door.next_command() for _ in range(2)] == [(Submit, "stub.1"), (Cancel, "stub.1")]


def test_prompts_that_wait_are_bounded_in_bytes_class_by_class(door: Door) -> None:
    door.hold(1)
    door.submit(2, "x" * 8000)
    door.submit(3, "x" * 8000)
    handle, end = door.stub.next_end()
    assert (handle, end.error_code) == (3, "OVERLOADED")
    assert "exceed max_waiting_prompt_bytes 20000" in end.error_message
    assert "retry_after_ms=" in end.error_message
    door.submit(4, "x" * 8000, "rt")
    assert door.next_command() == (Submit, "stub.4")


def test_a_prompt_larger_than_the_bound_is_taken_when_nothing_waits(door: Door) -> None:
    door.submit(1, None, token_ids=(5,) * 8000)
    assert door.next_command() == (Submit, "stub.1")


def test_what_waits_no_longer_counts_no_longer(door: Door) -> None:
    door.hold(1)
    for handle in range(2, 20):
        door.submit(handle, "x" * 8000)
        door.cancel(handle)
        assert door.stub.next_end()[1].finish_reason == "cancelled"


@pytest.mark.parametrize("priority_class", ["rt", "be"])
def test_an_error_of_our_own_is_one_requests_and_counted(door: Door, priority_class: str) -> None:
    door.submit(1, "broken", priority_class)
    _, end = door.stub.next_end()
    assert end.error_code == "INTERNAL"
    assert "IndexError('no such word')" in end.error_message
    door.submit(2, "hi", priority_class)
    assert door.next_command() == (Submit, "stub.2")
    counted = {s.labels["outcome"]: s.value for s in door.metrics.drain().samples if s.name == "bros_requests_total"}
    assert counted == {"internal": 1}


def test_an_engine_that_takes_no_more_is_told_to_the_client(door: Door) -> None:
    def refuse(_: Command) -> None:
        raise OverloadedError("engine inbox", 1.0)

    door.post = refuse
    door.submit(1, "hi", "rt")
    assert door.stub.next_end()[1].error_code == "OVERLOADED"
    assert door.outbox.wait_until_idle(WAIT_S)


def test_a_text_that_no_prompt_can_say_is_refused_unread(door: Door) -> None:
    door.submit(1, "slow" * 20_000)
    _, end = door.stub.next_end()
    assert end.error_code == "TOO_LARGE"
    assert "80000 bytes exceeds 65536" in end.error_message
    assert door.tokenizer.begun.empty()


def test_when_a_stub_goes_its_requests_go_and_no_others(door: Door) -> None:
    other = Stub("other")
    door.hold(1)
    door.submit(2, "hi")
    door.queue.submit(cast(Connection, other), SubmitMessage(9, "", 0.0, make_generation(priority_class="be")))
    door.queue.drop(cast(Connection, door.stub))
    door.tokenizer.may_go_on.set()
    commands = [door.next_command() for _ in range(3)]
    assert commands == [(Submit, "stub.1"), (Cancel, "stub.1"), (Submit, "other.9")]


def test_a_drain_waits_for_what_is_being_tokenised(door: Door) -> None:
    door.hold(1)
    assert not door.queue.wait_until_idle(0.01)
    door.tokenizer.may_go_on.set()
    assert door.queue.wait_until_idle(WAIT_S)


def test_what_waits_at_the_end_is_refused_and_so_is_what_comes_later(door: Door) -> None:
    door.hold(1)
    door.submit(2, "hi")
    closing = threading.Thread(target=door.queue.close)
    closing.start()
    assert door.stub.next_end()[1].error_code == "ENGINE_DOWN"
    door.tokenizer.may_go_on.set()
    closing.join(WAIT_S)
    door.submit(3, "hi")
    handle, end = door.stub.next_end()
    assert (handle, end.error_code) == (3, "ENGINE_DOWN")


# --- What only the engine process can know ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_ids": (5, 300)}, "input_ids: 300 is no token id; the vocabulary has 256"),
        ({"text": "\xff"}, "text_input: 258 is no token id; the vocabulary has 256"),
        ({"messages": '[{"role": "u", "content": "ÿ"}]'}, "messages: "),
        ({"sampling": Sampling(stop_token_ids=(256,))}, "stop_token_ids: 256 is no token id; the vocabulary has 256"),
    ],
    ids=str,
)
def test_token_ids_are_checked_against_the_models_vocabulary(options: dict[str, Any], message: str) -> None:
    class Widened(SimTokenizer):
        """Knows a token that the model does not."""

        def encode(self, text: str) -> list[int]:
            return [258 if char == "\xff" else 5 for char in text]

    intake = Intake(Widened(32_000, 2), ServiceSettings(), 100, 256, Abilities("none"))
    with pytest.raises(InvalidRequestError, match=message):
        intake.request(SubmitMessage(1, "", 0.0, make_generation(**options)), RequestId("r"))


@pytest.mark.parametrize("priority_class", ["rt", "be"])
def test_nobody_without_a_schema_waits_for_one(door: Door, priority_class: str) -> None:
    door.submit(1, "hi", priority_class, sampling=Sampling(json_schema="slow"))
    door.tokenizer.begun.get(timeout=WAIT_S)
    door.submit(2, "hi", priority_class, sampling=Sampling(json_schema="new"))
    door.submit(3, "hi", priority_class)
    assert door.next_command() == (Submit, "stub.3")
    door.tokenizer.may_go_on.set()
    assert [door.next_command() for _ in range(2)] == [(Submit, "stub.1"), (Submit, "stub.2")]


def test_a_real_time_schema_does_not_wait_for_a_best_effort_one(door: Door) -> None:
    door.submit(1, "hi", "be", sampling=Sampling(json_schema="slow"))
    door.tokenizer.begun.get(timeout=WAIT_S)
    door.submit(2, "hi", "rt", sampling=Sampling(json_schema="new"))
    assert door.next_command() == (Submit, "stub.2")


@pytest.mark.parametrize("priority_class", ["rt", "be"])
def test_a_known_schema_does_not_wait_for_a_new_one(door: Door, priority_class: str) -> None:
    door.submit(1, "hi", priority_class, sampling=Sampling(json_schema="slow"))
    door.tokenizer.begun.get(timeout=WAIT_S)
    door.submit(2, "hi", priority_class, sampling=Sampling(json_schema="{}"))
    assert door.next_command() == (Submit, "stub.2")


def test_so_many_new_schemas_of_a_class_may_wait_and_no_more() -> None:
    door = Door(max_waiting_bytes=100_000)
    door.submit(0, "hi", "rt", sampling=Sampling(json_schema="slow"))
    door.tokenizer.begun.get(timeout=WAIT_S)
    for handle in range(1, 10):
        door.submit(handle, "hi", "rt", sampling=Sampling(json_schema=f"new {handle}"))
    handle, end = door.stub.next_end()
    assert (handle, end.error_code) == (9, OverloadedError.code)
    assert "8 new schemas of class rt wait to be tried; the limit is 8" in end.error_message
    door.submit(10, "hi", "rt", sampling=Sampling(json_schema="new 8"))  # waits already: no further trial
    door.cancel(1)
    assert door.stub.next_end()[0] == 1
    door.submit(11, "hi", "rt", sampling=Sampling(json_schema="new 11"))
    door.tokenizer.may_go_on.set()
    served = [door.next_command()[1] for _ in range(10)]
    door.close()
    assert served == [f"stub.{handle}" for handle in (0, 2, 3, 4, 5, 6, 7, 8, 10, 11)]


def test_a_schema_that_cannot_be_compiled_ends_its_own_request(door: Door) -> None:
    door.submit(1, "hi", "rt", sampling=Sampling(json_schema="bad"))
    handle, end = door.stub.next_end()
    assert (handle, end.error_code, end.error_message) == (1, "INVALID_REQUEST", "json_schema: bad")
    door.submit(2, "hi", "rt", sampling=Sampling(json_schema="{}"))
    assert door.next_command() == (Submit, "stub.2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": Sampling(json_schema="{}")}, "json_schema: executor 'sim' follows none"),
        ({"sampling": Sampling(num_top_log_probs=2)}, "num_top_log_probs: executor 'sim' tells none"),
        ({"wants_log_probs": True}, "return_log_probs: executor 'sim' tells none"),
    ],
    ids=str,
)
def test_what_an_executor_cannot_is_refused_by_its_name(options: dict[str, Any], message: str) -> None:
    intake = Intake(SimTokenizer(32_000, 2), ServiceSettings(), 100, 256, Abilities("sim"))
    with pytest.raises(InvalidRequestError, match=message):
        intake.request(SubmitMessage(1, "", 0.0, make_generation(**options)), RequestId("r"))


@pytest.mark.parametrize(("max_seq_len", "default"), [(8192, 128), (100, 99)])
def test_a_least_length_beyond_the_usual_end_needs_a_max_tokens(max_seq_len: int, default: int) -> None:
    intake = Intake(SimTokenizer(32_000, 2), ServiceSettings(), max_seq_len, 256, Abilities("sim"))

    def least(num: int, max_tokens: int | None = None) -> int:
        sampling = Sampling(min_tokens=num, max_tokens=max_tokens)
        generation = make_generation(token_ids=(5,), sampling=sampling)
        return intake.request(SubmitMessage(1, "", 0.0, generation), RequestId("r")).sampling.min_tokens

    assert (least(default), least(default + 1, max_tokens=default + 1)) == (default, default + 1)
    with pytest.raises(InvalidRequestError, match=f"^min_tokens: {default + 1} exceeds {default}, the default"):
        least(default + 1)
