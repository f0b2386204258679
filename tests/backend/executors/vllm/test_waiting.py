"""The queue of waiting requests: vLLM's own order, and any request out of it."""

from __future__ import annotations

from backend.executors.vllm.waiting import WaitingRequests
from tests.backend.executors.vllm.fake_vllm import FakeRequest

A, B, C = (FakeRequest(name, 1, 1) for name in "abc")


def names(queue: WaitingRequests) -> str:
    return "".join(request.request_id for request in queue)


def test_first_come_is_first_out() -> None:
    queue = WaitingRequests([A])
    queue.add_request(B)
    assert (queue.peek_request(), queue.pop_request(), queue.pop_request()) == (A, A, B)
    assert not queue


def test_of_several_put_in_front_the_last_comes_first() -> None:
    queue = WaitingRequests([A])
    queue.prepend_requests([B, C])
    assert names(queue) == "cba"


def test_any_request_can_be_taken_out_and_an_absent_one_too() -> None:
    queue = WaitingRequests([A, B, C])
    queue.remove_requests([B, B])
    assert (names(queue), len(queue), B in queue) == ("ac", 2, False)
