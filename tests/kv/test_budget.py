"""A budget promises exactly what the manager then does, and moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.manager import KVCacheManager
from kv.types import KVConfig, Layout, Row, Side
from tests.kv.factories import configs, make_manager, open_row, snapshot

HEAD, TAIL = Side.HEAD, Side.TAIL


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Draw steps of a plan: what to do, to which row (by index, modulo their number), with what number."""
    kinds = st.sampled_from(["grow", "grow", "decode", "open", "shrink"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, 50), st.integers(0, 9)), max_size=12))


@settings(max_examples=300, deadline=None)
@given(config=configs(), before=plans(), plan=plans())
def test_try_grow_succeeds_exactly_when_grow_in_the_same_order_does(
    config: KVConfig, before: list[tuple[str, int, int]], plan: list[tuple[str, int, int]]
) -> None:
    manager = KVCacheManager(config)
    rows = [manager.open(side) for side in (HEAD, TAIL, HEAD, TAIL)]
    _apply(manager, rows, before)
    seen = snapshot(manager, rows)
    promised = _promises(manager, rows, plan)
    assert snapshot(manager, rows) == seen
    assert _apply(manager, rows, plan) == promised


def _promises(manager: KVCacheManager, rows: list[Row], plan: list[tuple[str, int, int]]) -> list[int]:
    """Return what a budget says to each step of a plan."""
    budget, promises = manager.budget(), []
    for kind, index, number in plan:
        row = rows[index % len(rows)]
        if kind == "grow" and budget.num_held(row) + number <= manager.config.max_seq_len:
            promises.append(int(budget.try_grow(row, HEAD, number)))
        elif kind == "decode":
            decodes = [row for row in _turned(rows, index) if budget.num_held(row) < manager.config.max_seq_len]
            promises.append(budget.try_grow_each_by_one(decodes))
        elif kind == "open":
            promises.append(int(budget.try_grow(None, HEAD if index % 2 else TAIL, number)))
        elif kind == "shrink":
            budget.shrink(row, min(number, budget.num_held(row)))
    return promises


def _apply(manager: KVCacheManager, rows: list[Row], plan: list[tuple[str, int, int]]) -> list[int]:
    """Do a plan's steps, as far as there is room; return what each gave."""
    given_: list[int] = []
    for kind, index, number in plan:
        row = rows[index % len(rows)]
        if kind == "grow" and manager.num_held(row) + number <= manager.config.max_seq_len:
            given_.append(int(manager.grow(row, number)))
        elif kind == "decode":
            decodes = [row for row in _turned(rows, index) if manager.num_held(row) < manager.config.max_seq_len]
            num_grown = 0
            while num_grown < len(decodes) and manager.grow(decodes[num_grown], 1):
                num_grown += 1
            given_.append(num_grown)
        elif kind == "open":
            opened = manager.open(HEAD if index % 2 else TAIL)
            has_room = manager.grow(opened, number)
            given_.append(int(has_room))
            if not has_room:
                manager.close(opened)
        elif kind == "shrink":
            manager.shrink(row, min(number, manager.num_held(row)), checkpoint=False)
    return given_


def _turned(rows: list[Row], index: int) -> list[Row]:
    """Return the rows in another order for each index."""
    turn = index % len(rows)
    return rows[turn:] + rows[:turn]


@pytest.mark.parametrize("layout", Layout)
def test_a_request_without_a_row_counts_as_a_new_holder_each_time(layout: Layout) -> None:
    budget = make_manager(num_blocks=2, block_size=4, layout=layout).budget()
    assert budget.try_grow(None, HEAD, 1)
    assert budget.try_grow(None, HEAD, 1)
    assert not budget.try_grow(None, HEAD, 1)


def test_max_growth_is_the_most_that_try_grow_gives() -> None:
    manager = make_manager(num_blocks=3)
    tail = open_row(manager, TAIL, 5)
    for row, side in ((None, HEAD), (None, TAIL), (tail, TAIL)):
        room = manager.budget().max_growth(row, side)
        assert manager.budget().try_grow(row, side, room)
        assert not manager.budget().try_grow(row, side, room + 1)


def test_decodes_counted_in_late_are_seen_by_what_follows() -> None:
    manager = make_manager(num_blocks=3)
    rows = [open_row(manager, HEAD, 4), open_row(manager, HEAD, 3)]
    budget = manager.budget()
    assert budget.try_grow_each_by_one(rows) == 2
    assert budget.max_growth(rows[0], HEAD) == 3
    assert budget.max_growth(rows[1], HEAD) == 0
    assert budget.num_held(rows[1]) == 4


def test_two_decodes_into_one_last_slot_are_not_promised_both() -> None:
    manager = make_manager(num_blocks=1)
    rows = [open_row(manager, HEAD, 2), open_row(manager, TAIL, 1)]
    assert manager.budget().try_grow_each_by_one(rows) == 1


def test_a_row_that_decodes_again_and_again_is_promised_no_more_than_there_is() -> None:
    manager = make_manager(num_blocks=1)
    row = open_row(manager, HEAD, 2)
    budget = manager.budget()
    assert [budget.try_grow_each_by_one([row]) for _ in range(3)] == [1, 1, 0]
    assert budget.num_held(row) == 4


@pytest.mark.parametrize("layout", [Layout.UNSHARED, Layout.WHOLE_BLOCK])
def test_decodes_into_their_own_blocks_need_no_free_ones(layout: Layout) -> None:
    manager = make_manager(num_blocks=3, layout=layout)
    rows = [open_row(manager, side, 2) for side in (HEAD, TAIL, HEAD)]
    assert manager.most_new_blocks(np.array(rows)) == 0
    budget = manager.budget()
    assert [budget.try_grow_each_by_one(rows[:2]), budget.try_grow_each_by_one(rows[2:])] == [2, 1]
    assert budget._pool is manager._pool
    assert [budget.try_grow_each_by_one(rows[2:]) for _ in range(2)] == [1, 0]


def test_each_row_of_a_manager_grows_or_none_does() -> None:
    manager = make_manager(num_blocks=3, layout=Layout.WHOLE_BLOCK)
    rows = [open_row(manager, HEAD, num_slots) for num_slots in (3, 4)]
    assert [manager.grow_each_by_one(rows) for _ in range(4)] == [True, False, False, False]
    assert [manager.num_held(row) for row in rows] == [4, 5]
    assert manager.grow_each_by_one(rows[1:])
    manager.check_invariants()


def test_many_decodes_are_cheap_because_nothing_is_copied_for_them() -> None:
    """A guard on the mechanism, not on the clock: a plan of decodes leaves the budget without a pool of its own."""
    manager = make_manager(num_blocks=64)
    rows = np.array([open_row(manager, HEAD, index % 5) for index in range(20)], np.int32)
    budget = manager.budget()
    assert budget.try_grow_each_by_one(rows[:10]) == 10
    assert budget.try_grow_each_by_one(rows[10:]) == 10
    assert budget._pool is manager._pool
