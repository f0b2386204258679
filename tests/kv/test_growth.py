"""Where a row grows, and that growth is all or nothing."""

from __future__ import annotations

import numpy as np
import pytest

from kv.manager import KVCacheManager
from kv.types import KVConfig, Layout, Row, Side
from tests.kv.factories import make_manager, open_row, slots_of, snapshot

HEAD, TAIL = Side.HEAD, Side.TAIL


def test_a_head_fills_a_block_from_the_left_and_a_tail_from_the_right() -> None:
    manager = make_manager(num_blocks=1)
    head, tail = open_row(manager, HEAD, 2), open_row(manager, TAIL, 2)
    assert slots_of(manager, head) == [0, 1]
    assert slots_of(manager, tail) == [3, 2]


def test_a_row_grows_into_the_middle_of_its_own_block_first() -> None:
    manager = make_manager(num_blocks=2)
    head = open_row(manager, HEAD, 1)
    manager.grow(head, 3)
    assert slots_of(manager, head) == [0, 1, 2, 3]


def test_a_row_prefers_a_free_block_to_sharing() -> None:
    manager = make_manager(num_blocks=2)
    open_row(manager, TAIL, 1)  # block 1, from the far end
    assert slots_of(manager, open_row(manager, HEAD, 1)) == [0]


def test_a_head_prefers_a_settled_tail_to_a_growing_one_with_more_room() -> None:
    manager = make_manager(num_blocks=2)
    settled, growing = open_row(manager, TAIL, 4), open_row(manager, TAIL, 1)
    manager.shrink(settled, 3, checkpoint=False)
    head = open_row(manager, HEAD, 1)
    assert slots_of(manager, head)[0] // 4 == slots_of(manager, settled)[0] // 4
    assert slots_of(manager, growing)[0] // 4 != slots_of(manager, settled)[0] // 4


def test_among_settled_tails_a_head_takes_the_one_with_most_room() -> None:
    manager = make_manager(num_blocks=3)
    tails = [open_row(manager, TAIL, 4) for _ in range(3)]
    for tail, num_kept in zip(tails, (3, 1, 2), strict=True):
        manager.shrink(tail, num_kept, checkpoint=False)
    head = open_row(manager, HEAD, 1)
    assert slots_of(manager, head)[0] // 4 == slots_of(manager, tails[1])[0] // 4


def test_a_shrunk_row_is_settled_only_until_it_grows_again() -> None:
    manager = make_manager(num_blocks=2)
    awake, asleep = open_row(manager, TAIL, 3), open_row(manager, TAIL, 4)
    for tail, num_kept in ((awake, 1), (asleep, 2)):
        manager.shrink(tail, num_kept, checkpoint=False)
    manager.grow(awake, 1)
    head = open_row(manager, HEAD, 1)
    assert slots_of(manager, head)[0] // 4 == slots_of(manager, asleep)[0] // 4


def test_a_tail_moves_in_with_a_head_when_no_block_is_free() -> None:
    manager = make_manager(num_blocks=1)
    open_row(manager, HEAD, 1)
    assert slots_of(manager, open_row(manager, TAIL, 3)) == [3, 2, 1]


def test_a_second_head_cannot_share_a_head_s_block() -> None:
    manager = make_manager(num_blocks=1)
    open_row(manager, HEAD, 1)
    assert not manager.grow(manager.open(HEAD), 1)


def test_fronts_that_meet_leave_no_slot_between_them() -> None:
    manager = make_manager(num_blocks=1)
    head, tail = open_row(manager, HEAD, 3), open_row(manager, TAIL, 1)
    assert not manager.grow(head, 1)
    assert not manager.grow(tail, 1)
    assert manager.usage().num_free_slots == 0


def test_of_two_rows_that_decode_into_one_last_slot_the_first_gets_it() -> None:
    manager = make_manager(num_blocks=2)
    blocker = open_row(manager, TAIL, 4)
    head, tail = open_row(manager, HEAD, 2), open_row(manager, TAIL, 1)
    manager.close(blocker)
    assert manager.grow_each_by_one(np.array([tail, head], np.int32))
    assert slots_of(manager, tail) == [3, 2]
    assert slots_of(manager, head) == [0, 1, 4]


def test_a_decode_that_must_move_in_with_another_decode_sees_it_as_it_is_at_its_turn() -> None:
    for order, expected in ((0, 1), (1, 0)):
        manager = make_manager(num_blocks=3)
        full = open_row(manager, HEAD, 4)
        tails = [open_row(manager, TAIL, 2), open_row(manager, TAIL, 2)]
        rows = [tails[order], full]  # the tail that grew first has less room to offer
        assert manager.grow_each_by_one(np.array(rows, np.int32))
        assert slots_of(manager, full)[-1] // 4 == slots_of(manager, tails[expected])[0] // 4


@pytest.mark.parametrize("layout", [Layout.UNSHARED, Layout.WHOLE_BLOCK])
def test_other_layouts_never_share_a_block(layout: Layout) -> None:
    manager = make_manager(num_blocks=1, layout=layout)
    open_row(manager, HEAD, 1)
    tail = manager.open(TAIL)
    assert not manager.grow(tail, 1)
    assert manager.budget().max_growth(None, TAIL) == 0


def test_whole_blocks_go_to_heads_from_the_low_end_and_to_tails_from_the_high_end() -> None:
    manager = make_manager(num_blocks=4, layout=Layout.WHOLE_BLOCK)
    assert slots_of(manager, open_row(manager, HEAD, 5)) == [0, 1, 2, 3, 4]
    assert slots_of(manager, open_row(manager, TAIL, 5)) == [12, 13, 14, 15, 8]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("num_taken", range(17))
def test_growth_into_a_pool_exhausted_at_any_point_changes_nothing(layout: Layout, num_taken: int) -> None:
    manager = make_manager(num_blocks=4, layout=layout)
    victim, taker = open_row(manager, TAIL, 3), manager.open(HEAD)
    if not manager.grow(taker, num_taken):
        num_taken = 0
    rows = [victim, taker]
    before = snapshot(manager, rows)
    for row in rows:
        room = manager.budget().max_growth(row, HEAD)
        assert not manager.grow(row, room + 1)
        assert snapshot(manager, rows) == before
    manager.check_invariants()


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("num_blocks", range(1, 14))
def test_a_decode_step_that_fails_at_any_row_changes_nothing(layout: Layout, num_blocks: int) -> None:
    """Up to twelve rows, of which half need another block, in pools that run dry at every one of them."""
    manager = make_manager(num_blocks=num_blocks, layout=layout)
    rows = []
    for index in range(12):
        row = manager.open(TAIL if index % 3 == 0 else HEAD)
        if manager.grow(row, 4 if index % 2 else 1 + index % 4):
            rows.append(row)
    before = snapshot(manager, rows)
    num_grown = manager.budget().try_grow_each_by_one(np.array(rows, np.int32))
    has_grown = manager.grow_each_by_one(np.array(rows, np.int32))
    assert has_grown == (num_grown == len(rows))
    assert (snapshot(manager, rows) == before) == (not has_grown)
    manager.check_invariants()


def test_rows_beyond_the_first_table_keep_the_slots_of_the_others() -> None:
    manager = make_manager(num_blocks=100)
    rows = [open_row(manager, HEAD, 3)]
    first = slots_of(manager, rows[0])
    rows += [open_row(manager, TAIL, 1) for _ in range(90)]
    assert slots_of(manager, rows[0]) == first
    assert manager.slot_table.shape[0] > 90
    manager.check_invariants()


def test_growth_past_the_last_position_is_refused_as_our_own_bug() -> None:
    manager = make_manager(max_seq_len=4)
    row = open_row(manager, HEAD, 4)
    with pytest.raises(AssertionError, match="max_seq_len 4"):
        manager.grow(row, 1)


def test_a_decode_past_the_last_position_cannot_write_beside_the_table() -> None:
    manager = make_manager(max_seq_len=4)
    row = open_row(manager, HEAD, 4)
    with pytest.raises(AssertionError, match="longer than the slot table"):
        manager.grow_each_by_one(np.array([row], np.int32))


def test_a_closed_row_is_refused_as_our_own_bug() -> None:
    manager = make_manager()
    row = open_row(manager, HEAD, 4)
    manager.close(row)
    for misuse in (manager.close, lambda row: manager.grow(row, 1), lambda row: manager.shrink(row, 0, False)):
        with pytest.raises(AssertionError, match="is not open"):
            misuse(row)
    with pytest.raises(AssertionError, match="not open"):
        manager.grow_each_by_one(np.array([row], np.int32))


def _decode_and_close(config: KVConfig, seed: int) -> list[list[int]]:
    """Open, decode and close rows in a pool too small, decoding as many as the budget promises; return all slots held
    after each step."""
    manager, rng = KVCacheManager(config), np.random.default_rng(seed)
    rows: list[Row] = []
    history: list[list[int]] = []
    for _ in range(60):
        if rng.random() < 0.3:
            rows.append(manager.open(HEAD if rng.random() < 0.5 else TAIL))
        elif rows and rng.random() < 0.1:
            manager.close(rows.pop(int(rng.integers(len(rows)))))
        growing = np.array([row for row in rows if manager.num_held(row) < config.max_seq_len], np.int32)
        num_promised = manager.budget().try_grow_each_by_one(growing)
        assert manager.grow_each_by_one(growing[:num_promised])
        assert num_promised == len(growing) or not manager.grow(Row(int(growing[num_promised])), 1)
        history.append([slot for row in rows for slot in slots_of(manager, row)])
    return history


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("seed", range(5))
def test_the_same_calls_give_the_same_slots(layout: Layout, seed: int) -> None:
    config = KVConfig(num_blocks=6, block_size=4, max_seq_len=32, layout=layout)
    assert _decode_and_close(config, seed) == _decode_and_close(config, seed)
