"""Requests that begin alike: the cached go first, and nobody is overtaken from beyond the band."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from backend.core.request import Request, RequestState
from backend.policy.state.alike import NUM_ALIKE, Alike
from kv.prefixes import Prefix
from tests.backend.factories import Harness, be

BAND = 6


def waiting(beginnings: str, salt: str = "") -> list[Request]:
    """Return requests in order of arrival; those of one letter begin alike."""
    requests = [be(prompt=[ord(letter)] * NUM_ALIKE + [index, 7]) for index, letter in enumerate(beginnings)]
    for index, request in enumerate(requests):
        request.arrival_index = index
        request.prefix = Prefix(request.prompt_token_ids, salt)
    return requests


def turns(requests: Sequence[Request], num_slots: int = 1, num_cached: int = 1) -> list[int]:
    """Begin `num_slots` requests a step. The last `num_cached` beginnings are in the cache. Return who began when."""
    cache: list[int] = []

    def look(request: Request) -> None:
        request.num_computed = NUM_ALIKE if request.token_ids[0] in cache else 0

    groups, left, order = Alike(look, band=BAND), list(requests), list[int]()
    for request in requests:
        groups.enter(request)
    while left:
        groups.check_invariants(len(left))
        for request in left:
            look(request)
        taken: list[Request] = []
        for request in groups.in_turn(iter(left), taken):
            if len(taken) == num_slots:
                break
            taken.append(request)
        for request in taken:
            request.state = RequestState.RUNNING
            groups.leave(request)
            left.remove(request)
            order.append(request.arrival_index)
            cache = [token for token in cache if token != request.token_ids[0]][: num_cached - 1]
            cache.insert(0, request.token_ids[0])
    groups.check_invariants(0)
    return order


def test_requests_that_begin_alike_run_one_after_the_other() -> None:
    assert turns(waiting("BACABA")) == [0, 4, 1, 3, 5, 2]


def test_the_oldest_goes_when_those_alike_are_beyond_the_band() -> None:
    assert turns(waiting("AB" + 8 * "A")) == [0, 2, 3, 4, 5, 6, 7, 1, 8, 9]


def test_without_two_that_begin_alike_the_order_is_that_of_arrival() -> None:
    assert turns(waiting("ABCDE"), 2) == [0, 1, 2, 3, 4]


@given(st.text("ABCD", min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 3))
def test_nobody_is_overtaken_from_beyond_the_band(beginnings: str, num_slots: int, num_cached: int) -> None:
    order = turns(waiting(beginnings), num_slots, num_cached)
    assert sorted(order) == list(range(len(beginnings)))
    for place, index in enumerate(order):
        assert max(order[:place], default=0) - index <= BAND


def test_requests_of_different_salts_are_not_alike() -> None:
    groups = Alike()
    for request in waiting("A", "x") + waiting("A", "y"):
        groups.enter(request)
    groups.check_invariants(2)
    assert not groups._several


def test_the_scheduler_lets_the_cached_go_first_unless_that_is_switched_off() -> None:
    def begun(cached_first: bool) -> list[str]:
        harness = Harness(prefix_caching=True, cached_first=cached_first, max_seqs_per_step=1, max_tokens_per_step=300)
        prompts = [[ord(letter)] * NUM_ALIKE + [index] for index, letter in enumerate("ABAB")]
        harness.submit(*(be(prompt=prompt, max_tokens=1, request_id=str(i)) for i, prompt in enumerate(prompts)))
        harness.run()
        return list(harness.ends)  # each ends in the step in which it begins

    assert begun(True) == ["0", "2", "1", "3"]
    assert begun(False) == ["0", "1", "2", "3"]
