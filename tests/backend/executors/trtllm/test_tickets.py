"""Tickets: found by the id of the client side, even by whoever asks before the submission has returned."""

from __future__ import annotations

import threading

import pytest

from backend.executors.foreign.source import Ticket
from backend.executors.trtllm.tickets import Tickets
from tests.backend.executors.trtllm.fake_requests import FakeRequestOutput
from tests.backend.factories import be


def output(client_id: int) -> FakeRequestOutput:
    return FakeRequestOutput(client_id, None)


def test_a_ticket_is_found_by_its_client_id_until_it_is_forgotten() -> None:
    tickets, ticket = Tickets(), Ticket(be())
    answer = tickets.submit(ticket, lambda: output(7))
    assert tickets.find(7) is ticket
    tickets.forget(answer)
    assert tickets.find(7) is None


def test_a_request_without_a_ticket_is_not_ours() -> None:
    assert Tickets().find(7) is None
    assert Tickets().find(None) is None


def test_a_refused_request_leaves_no_ticket() -> None:
    tickets = Tickets()

    def refuse() -> FakeRequestOutput:
        raise ValueError("too long")

    with pytest.raises(ValueError, match="too long"):
        tickets.submit(Ticket(be()), refuse)
    assert tickets.find(7) is None


def test_the_step_loop_waits_for_the_submission_under_way() -> None:
    tickets, ticket = Tickets(), Ticket(be())
    found: list[Ticket | None] = []
    is_looking = threading.Event()

    def look() -> None:
        is_looking.set()
        found.append(tickets.find(7))

    step_loop = threading.Thread(target=look)

    def generate() -> FakeRequestOutput:
        step_loop.start()  # the request is active before its client side has an answer
        assert is_looking.wait(10.0)
        return output(7)

    tickets.submit(ticket, generate)
    step_loop.join(10.0)
    assert found == [ticket]
