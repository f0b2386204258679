"""The engine's state for those who ask: one look for all, bounded, and an error for them alone where it fails."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from backend.engine.engine import Engine
from backend.server.connection import Connection
from backend.server.inspection import MAX_WAITING, Inspection
from backend.server.snapshot import StepLog
from backend.wire.protocol import Chunk, Chunks, ToStub
from client.snapshot import parse_snapshot
from tests.backend.factories import Harness, rt


class Asker:
    """A connection that keeps the answers."""

    def __init__(self) -> None:
        self.answers: list[Chunk] = []

    def send(self, message: ToStub) -> None:
        assert isinstance(message, Chunks)
        self.answers += message.chunks

    def ask(self, inspection: Inspection, handle: int, engine: Engine | None, *, names_requests: bool = True) -> None:
        inspection.ask(cast(Connection, self), handle, engine, names_requests=names_requests)

    def codes(self) -> list[str | None]:
        return [answer.end.error_code for answer in self.answers if answer.end]


@pytest.fixture
def asker() -> Asker:
    return Asker()


def test_all_who_ask_between_two_steps_get_one_look(asker: Asker) -> None:
    harness, inspection = Harness(), Inspection(StepLog())
    for handle in range(3):
        asker.ask(inspection, handle, harness.engine)
    assert len(harness.engine._inbox) == 1
    harness.step()
    assert [answer.handle for answer in asker.answers] == [0, 1, 2]
    assert {answer.text[:11] for answer in asker.answers} == {'{"version":'}
    asker.ask(inspection, 9, harness.engine)
    harness.step()
    assert asker.answers[-1].handle == 9


def test_who_asks_for_counts_learns_no_name(asker: Asker) -> None:
    harness, inspection = Harness(), Inspection(StepLog())
    harness.submit(rt(10, 5))
    harness.step()
    for handle, names_requests in enumerate([True, False, True]):
        asker.ask(inspection, handle, harness.engine, names_requests=names_requests)
    harness.step()
    seen = {answer.handle: parse_snapshot(answer.text) for answer in asker.answers}
    assert {handle: len(snapshot.requests) for handle, snapshot in seen.items()} == {0: 1, 1: 0, 2: 1}
    assert seen[1] == msgspec.structs.replace(seen[0], requests=[])


def test_more_than_can_be_answered_between_two_steps_are_refused(asker: Asker) -> None:
    harness, inspection = Harness(), Inspection(StepLog())
    for handle in range(MAX_WAITING + 1):
        asker.ask(inspection, handle, harness.engine)
    assert asker.codes() == ["OVERLOADED"]
    harness.step()
    assert asker.codes()[1:] == [None] * MAX_WAITING


def test_a_look_that_fails_is_the_error_of_those_who_asked(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ValueError("no such row")

    monkeypatch.setattr("backend.server.inspection.snapshot_json", fail)
    harness = Harness()
    request = rt(10, 2)
    harness.submit(request)
    asker.ask(Inspection(StepLog()), 1, harness.engine)
    harness.run()
    assert asker.codes() == ["INTERNAL"]
    assert len(harness.tokens[request.request_id]) == 2


def test_an_inbox_that_is_full_is_told_and_does_not_stop_later_questions(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, inspection = Harness(), Inspection(StepLog())
    with monkeypatch.context() as patch:
        patch.setattr("backend.engine.engine.MAX_INBOX", 0)
        asker.ask(inspection, 1, harness.engine)
    asker.ask(inspection, 2, harness.engine)
    harness.step()
    assert asker.codes() == ["OVERLOADED", None]


def test_without_an_engine_there_is_nothing_to_see(asker: Asker) -> None:
    asker.ask(Inspection(StepLog()), 1, None)
    assert asker.codes() == ["ENGINE_DOWN"]
