"""A new row borrows the longest prefix that rows of its salt hold, and cached rows give way in their order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kv.manager import KVCacheManager
from kv.prefixes import Prefix
from kv.types import Row, Side
from tests.kv.factories import make_manager, slots_of

HEAD, TAIL = Side.HEAD, Side.TAIL


def tokens(num_tokens: int, story: int = 0) -> list[int]:
    """Return tokens that are those of no other story from the first on."""
    return [100 * story + position for position in range(num_tokens)]


def cached(manager: KVCacheManager, side: Side, token_ids: list[int], salt: str = "") -> Row:
    """Compute tokens in a row of their own, then leave it to the cache."""
    row = manager.open(side)
    assert manager.grow(row, len(token_ids))
    manager.begin_step()
    manager.leave_cached(row, Prefix(token_ids, salt), len(token_ids))
    return row


def found(manager: KVCacheManager, token_ids: list[int], salt: str = "") -> int:
    return manager.find(Prefix(token_ids, salt))


def test_a_hit_is_whole_segments_and_never_the_last_token() -> None:
    manager = make_manager(block_size=4)
    cached(manager, TAIL, tokens(11))
    assert [found(manager, tokens(num)) for num in (3, 4, 5, 8, 9, 12, 20)] == [0, 3, 4, 7, 8, 8, 8]


def test_a_hit_ends_where_the_tokens_part() -> None:
    manager = make_manager(block_size=4)
    cached(manager, HEAD, tokens(12))
    assert found(manager, [*tokens(6), 999, *tokens(12)[7:], 12]) == 4


def test_nothing_is_found_under_another_salt() -> None:
    manager = make_manager(block_size=4)
    cached(manager, HEAD, tokens(8), "one")
    assert (found(manager, tokens(9), "two"), found(manager, tokens(9)), found(manager, tokens(9), "one")) == (0, 0, 8)


@pytest.mark.parametrize("borrower", Side)
@pytest.mark.parametrize("lender", Side)
def test_a_borrowed_prefix_is_the_same_slots_on_either_side(lender: Side, borrower: Side) -> None:
    manager = make_manager(block_size=4)
    running = manager.open(lender)
    assert manager.grow(running, 9)
    manager.begin_step()
    manager.lend(running, Prefix(tokens(9)), 9)
    row = manager.open(borrower)
    assert manager.borrow(row, Prefix(tokens(10))) == 8
    assert manager.grow(row, 2)
    assert slots_of(manager, row)[:8] == slots_of(manager, running)[:8]
    manager.check_invariants()


def test_tokens_of_one_byte_pattern_are_not_taken_for_others() -> None:
    manager = make_manager(block_size=4)
    cached(manager, HEAD, [1, 2, 3, 4])
    assert found(manager, [1, 2, 3, 4 + 2**24, 5]) == 0


def test_a_lender_keeps_what_is_borrowed_however_much_it_is_to_give_up() -> None:
    manager = make_manager(block_size=4)
    lender = cached(manager, TAIL, tokens(12))
    row = manager.open(HEAD)
    assert manager.borrow(row, Prefix(tokens(9))) == 8
    manager.evict_all()
    assert manager.num_held(lender) == 8
    manager.close(row)
    manager.evict_all()
    assert manager.usage().num_free_slots == manager.config.num_slots


def test_best_effort_s_cached_rows_go_before_real_time_s_then_the_one_used_longest_ago() -> None:
    manager = make_manager(num_blocks=4, block_size=4)
    for story, side in enumerate((HEAD, TAIL, TAIL, HEAD)):
        cached(manager, side, tokens(4, story))
    row = manager.open(HEAD)
    assert manager.borrow(row, Prefix(tokens(5, 1))) == 4  # real-time uses it, too
    manager.close(row)
    order = []
    for _ in range(4):
        before = [story for story in range(4) if found(manager, tokens(5, story))]
        assert manager.grow(manager.open(HEAD), 4)
        order += [story for story in before if not found(manager, tokens(5, story))]
    assert order == [2, 0, 3, 1]
    assert manager.num_evicted_slots == 16


def test_a_prefix_outlives_what_follows_it() -> None:
    manager = make_manager(num_blocks=3, block_size=4)
    cached(manager, HEAD, tokens(12))
    assert manager.grow(manager.open(HEAD), 4)
    assert found(manager, tokens(13)) == 8


def test_a_row_is_not_refused_for_the_sake_of_what_is_cached() -> None:
    manager = make_manager(num_blocks=4, block_size=4)
    for story in range(4):
        cached(manager, (HEAD, TAIL)[story % 2], tokens(4, story))
    assert manager.budget().max_growth(None, HEAD) == 16
    assert manager.grow(manager.open(HEAD), 16)
    assert not manager.grow(manager.open(TAIL), 1)


def test_growth_that_fails_evicts_nothing() -> None:
    manager = make_manager(num_blocks=4, block_size=4)
    cached(manager, HEAD, tokens(8))
    assert not manager.grow(manager.open(HEAD), 17)
    assert found(manager, tokens(9)) == 8


def test_a_plan_makes_no_room_of_the_prefix_it_reserved() -> None:
    manager = make_manager(num_blocks=4, block_size=4)
    cached(manager, TAIL, tokens(8))
    cached(manager, HEAD, tokens(8, 1))
    prefix, budget = Prefix(tokens(16)), manager.budget()
    row = budget.reserve(HEAD, prefix.lenders, manager.find(prefix)) if manager.find(prefix) else None
    assert row is not None
    assert budget.max_growth(row, HEAD) == 8
    assert budget.try_grow(row, HEAD, 8)
    manager.adopt(budget)
    assert (manager.num_held(row), manager.num_borrowed(row)) == (16, 8)
    manager.check_invariants()


def test_a_plan_borrows_nothing_of_a_row_that_it_cut() -> None:
    manager = make_manager(block_size=4)
    running = manager.open(TAIL)
    assert manager.grow(running, 8)
    manager.begin_step()
    manager.lend(running, Prefix(tokens(8)), 8)
    prefix, budget = Prefix(tokens(9)), manager.budget()
    assert manager.find(prefix) == 8
    budget.shrink(running, 4)
    assert budget.try_grow(running, TAIL, 4)  # it holds as much again, of which nothing is computed
    assert budget.reserve(HEAD, prefix.lenders, 8) is None


def test_a_row_that_only_repeats_another_is_not_kept() -> None:
    manager = make_manager(block_size=4)
    cached(manager, TAIL, tokens(8))
    cached(manager, TAIL, tokens(8))
    assert manager.usage().num_cached_slots == 8


def test_a_victim_s_worth_ends_where_it_borrows_and_where_it_lends() -> None:
    manager = make_manager(num_blocks=16, block_size=4)
    cached(manager, TAIL, tokens(8))
    victim = manager.open(TAIL)
    assert manager.borrow(victim, Prefix(tokens(17))) == 8
    assert manager.grow(victim, 12)
    manager.begin_step()
    manager.lend(victim, Prefix(tokens(20)), 16)
    assert manager.borrow(manager.open(HEAD), Prefix(tokens(13))) == 12
    assert manager.budget().tail_boundaries(victim) == [(16, 4), (12, 8)]


def test_looking_again_follows_what_was_evicted_and_what_was_added() -> None:
    manager, prefix = make_manager(num_blocks=4, block_size=4), Prefix(tokens(17))
    cached(manager, TAIL, tokens(8))
    assert manager.find(prefix) == 8
    manager.evict_all()
    assert manager.find(prefix) == 0
    cached(manager, TAIL, tokens(12))
    assert manager.find(prefix) == 12


class Stories:
    """Rows that hold prompts which begin alike, and go on differently."""

    def __init__(self) -> None:
        self.manager = make_manager(num_blocks=12, block_size=2)
        self.prompts = [[*range(6), *[100 + story] * 18] for story in range(3)]
        self.running: list[tuple[Row, int]] = []  # with their stories

    def begin(self, story: int, num_tokens: int) -> None:
        self._grow(self.manager.open(TAIL), story, num_tokens)

    def go_on(self, which: int, num_tokens: int) -> None:
        if self.running:
            self._grow(*self.running.pop(which % len(self.running)), min(num_tokens, 4))

    def cut(self, which: int, num_tokens: int) -> None:
        if self.running:
            row = self.running[which % len(self.running)][0]
            self.manager.shrink(row, min(num_tokens, self.manager.num_held(row)), checkpoint=False)

    def end(self, which: int, _num_tokens: int) -> None:
        if self.running:
            row, story = self.running.pop(which % len(self.running))
            num_tokens = self.manager.num_held(row)
            self.manager.leave_cached(row, Prefix(self.prompts[story][:num_tokens]), num_tokens)

    def evict(self, _story: int, _num_tokens: int) -> None:
        self.manager.evict_all()

    def _grow(self, row: Row, story: int, num_tokens: int) -> None:
        num_held = self.manager.num_held(row)
        if num_held + num_tokens <= 24 and self.manager.grow(row, num_tokens):
            num_held += num_tokens
            self.manager.begin_step()
            self.manager.lend(row, Prefix(self.prompts[story][:num_held]), num_held)
        self.running.append((row, story))


# One row begins as another does. That one goes, and the first goes on with other tokens, in the run that both had.
ONE_GOES_ON_ALONE = [
    (Stories.begin, 1, 6, False),
    (Stories.begin, 0, 10, True),
    (Stories.cut, 1, 1, False),
    (Stories.go_on, 0, 4, True),
]
CHANGES = (Stories.begin, Stories.begin, Stories.go_on, Stories.cut, Stories.end, Stories.evict)


@example(ONE_GOES_ON_ALONE)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 2), st.integers(1, 14), st.booleans()), max_size=30))
def test_looking_again_finds_what_a_first_look_finds(
    changes: list[tuple[Callable[[Stories, int, int], None], int, int, bool]],
) -> None:
    stories = Stories()
    kept = [Prefix(prompt) for prompt in stories.prompts]
    for change, story, num_tokens, is_looked_up in changes:
        change(stories, story, num_tokens)
        if is_looked_up:
            manager = stories.manager
            assert list(map(manager.find, kept)) == [found(manager, prompt) for prompt in stories.prompts]
            assert [bool(prefix.lenders) for prefix in kept] == [manager.find(prefix) > 0 for prefix in kept]
