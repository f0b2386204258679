"""The oracles of prefix caching: hits that can be counted by hand, and what overlapping requests take from them."""

from __future__ import annotations

from bench.sim.prefix_oracle import BLOCK_SIZE, Served, Turn, oracle, oracle_beside

NUM_BLOCKS = 4
NUM_SLOTS = NUM_BLOCKS * BLOCK_SIZE


def turn(first: int, is_rt: bool = True, num_blocks: int = 2) -> Turn:
    """Return a prompt of whole blocks, all its own from the first token on, and an answer of one token."""
    return Turn(0.0, is_rt, tuple(range(first, first + num_blocks * BLOCK_SIZE)), 1)


def one_by_one(turns: list[Turn]) -> list[Served]:
    return [Served(each, index, index + 0.5, index + 0.9) for index, each in enumerate(turns)]


def test_all_but_the_last_token_of_a_prompt_that_came_before_is_found() -> None:
    assert oracle([turn(0), turn(0)], NUM_SLOTS) == {"rt": 31 / 64, "be": None}


def test_the_oracle_drops_the_block_that_was_used_least_recently() -> None:
    turns = [turn(0), turn(1000), turn(0), turn(2000), turn(0, is_rt=False), turn(1000, is_rt=False)]
    assert oracle(turns, NUM_SLOTS) == {"rt": 31 / 128, "be": 31 / 64}


def test_without_overlap_both_oracles_find_the_same() -> None:
    turns = [turn(number % 3 * 1000, number % 2 == 0) for number in range(12)]
    assert oracle_beside(one_by_one(turns), [], NUM_SLOTS) == oracle(turns, NUM_SLOTS)


def test_what_another_request_still_computes_is_not_found() -> None:
    served = [Served(turn(0), 0.0, 2.0, 3.0), Served(turn(0, is_rt=False), 1.0, 2.5, 3.0)]
    assert oracle_beside(served, [], NUM_SLOTS)["be"] == 0.0


def test_the_prompt_of_a_running_request_is_found() -> None:
    served = [Served(turn(0), 0.0, 1.0, 9.0), Served(turn(0, is_rt=False), 2.0, 2.5, 3.0)]
    assert oracle_beside(served, [(0.0, NUM_SLOTS)], NUM_SLOTS)["be"] == 31 / 32


def test_slots_that_requests_take_are_lost_to_the_cache() -> None:
    served = one_by_one([turn(0), turn(0, is_rt=False)])
    assert oracle_beside(served, [(0.95, NUM_SLOTS - BLOCK_SIZE)], NUM_SLOTS)["be"] == 16 / 32
