"""Giving up slots from the end, copies of them on the host, and getting them back."""

from __future__ import annotations

import numpy as np
import pytest

from kv.manager import KVCacheManager
from kv.types import Layout, Row, Side
from tests.kv.factories import make_manager, open_row, slots_of

HEAD, TAIL = Side.HEAD, Side.TAIL


def make_victim(manager: KVCacheManager, num_slots: int, side: Side = TAIL) -> Row:
    """Return a row whose positions were all computed in an earlier step."""
    row = open_row(manager, side, num_slots)
    manager.begin_step()
    return row


@pytest.mark.parametrize("num_kept", range(11))
def test_a_victim_keeps_a_prefix_in_the_slots_it_had(num_kept: int) -> None:
    manager = make_manager()
    victim = make_victim(manager, 10)
    before = slots_of(manager, victim)
    manager.shrink(victim, num_kept, checkpoint=False)
    assert slots_of(manager, victim) == before[:num_kept]
    manager.check_invariants()


def test_a_head_overwrites_what_a_tail_gave_up() -> None:
    manager = make_manager(num_blocks=1)
    victim = make_victim(manager, 3)
    head = open_row(manager, HEAD, 1)
    manager.shrink(victim, 1, checkpoint=False)
    manager.grow(head, 2)
    assert slots_of(manager, head) == [0, 1, 2]
    assert slots_of(manager, victim) == [3]


def test_real_time_preempts_real_time_by_the_same_calls() -> None:
    manager = make_manager(num_blocks=2, num_host_slots=8)
    victim, urgent = make_victim(manager, 4, HEAD), make_victim(manager, 4, HEAD)
    budget = manager.budget()
    assert not budget.try_grow(urgent, HEAD, 4)
    assert budget.tail_boundaries(victim) == [(0, 4)]
    budget.shrink(victim, 0)
    assert budget.try_grow(urgent, HEAD, 4)
    copies = manager.shrink(victim, 0, checkpoint=True)
    assert manager.grow(urgent, 4)
    assert len(copies) == manager.num_restorable(victim) == 4


def test_boundaries_go_from_the_end_backwards_block_by_block() -> None:
    manager = make_manager(num_blocks=4)
    victim = make_victim(manager, 10)  # blocks of 4, 4 and 2 positions
    assert manager.budget().tail_boundaries(victim) == [(8, 2), (4, 6), (0, 10)]


def test_a_tail_beside_a_head_is_no_gain_to_a_new_head() -> None:
    manager = make_manager(num_blocks=1)
    victim = make_victim(manager, 2)
    open_row(manager, HEAD, 1)
    assert manager.budget().tail_boundaries(victim) == [(0, 0)]


@pytest.mark.parametrize("layout", [Layout.UNSHARED, Layout.WHOLE_BLOCK])
def test_without_sharing_a_partly_filled_block_is_a_gain_of_a_whole_one(layout: Layout) -> None:
    manager = make_manager(num_blocks=4, layout=layout)
    victim = make_victim(manager, 6)
    assert manager.budget().tail_boundaries(victim) == [(4, 4), (0, 8)]


def test_copies_name_the_slots_that_are_given_up() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 6)
    before = slots_of(manager, victim)
    copies = manager.shrink(victim, 2, checkpoint=True)
    assert copies.device_slots.tolist() == before[2:]
    assert len(set(copies.host_slots.tolist())) == 4
    assert copies.device_slots.dtype == copies.host_slots.dtype == np.int32


def test_shrinking_again_extends_the_copies_downwards() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 6)
    first = manager.shrink(victim, 4, checkpoint=True)
    manager.begin_step()
    second = manager.shrink(victim, 1, checkpoint=True)
    assert manager.num_restorable(victim) == 5
    manager.begin_step()
    restored = manager.restore(victim, 5)
    assert restored.host_slots.tolist() == second.host_slots.tolist() + first.host_slots.tolist()


def test_shrinking_without_copies_drops_those_beyond_the_gap() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 6)
    manager.shrink(victim, 4, checkpoint=True)
    manager.shrink(victim, 2, checkpoint=False)
    assert manager.num_restorable(victim) == 0


def test_computing_a_position_again_frees_its_copy_and_keeps_the_rest() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 6)
    copies = manager.shrink(victim, 2, checkpoint=True)
    manager.begin_step()
    manager.grow_each_by_one(np.array([victim], np.int32))
    assert manager.num_restorable(victim) == 3
    assert manager.restore(victim, 3).host_slots.tolist() == copies.host_slots.tolist()[1:]


def test_a_host_pool_that_is_too_small_keeps_a_run_that_starts_at_the_held_length() -> None:
    manager = make_manager(num_host_slots=3)
    victim = make_victim(manager, 10)
    before = slots_of(manager, victim)
    copies = manager.shrink(victim, 4, checkpoint=True)
    assert copies.device_slots.tolist() == before[4:7]
    assert manager.num_restorable(victim) == 3


def test_a_full_host_pool_drops_the_oldest_copies_from_their_far_end() -> None:
    manager = make_manager(num_host_slots=8)
    oldest, older, newest = (make_victim(manager, 4) for _ in range(3))
    for victim in (oldest, older):
        manager.shrink(victim, 0, checkpoint=True)
        manager.begin_step()
    assert len(manager.shrink(newest, 1, checkpoint=True)) == 3
    assert [manager.num_restorable(victim) for victim in (oldest, older, newest)] == [1, 4, 3]


def test_copies_of_this_step_are_not_dropped_for_others_of_this_step() -> None:
    manager = make_manager(num_host_slots=4)
    first, second = make_victim(manager, 4), make_victim(manager, 4)
    manager.shrink(first, 0, checkpoint=True)
    assert len(manager.shrink(second, 0, checkpoint=True)) == 0
    assert (manager.num_restorable(first), manager.num_restorable(second)) == (4, 0)


def test_a_run_cut_short_drops_what_the_same_step_saved_beyond_it() -> None:
    manager = make_manager(num_host_slots=4)
    victim = make_victim(manager, 8)
    before = slots_of(manager, victim)
    manager.shrink(victim, 5, checkpoint=True)
    copies = manager.shrink(victim, 2, checkpoint=True)
    assert copies.device_slots.tolist() == before[2:3]
    assert manager.num_restorable(victim) == 1
    manager.check_invariants()


def test_a_host_slot_read_in_this_step_is_not_written_in_it() -> None:
    """Copies out run before copies in: a slot taken over would be overwritten before it is read."""
    manager = make_manager(num_host_slots=4)
    restored, victim = make_victim(manager, 4), make_victim(manager, 4)
    manager.shrink(restored, 0, checkpoint=True)
    manager.begin_step()
    manager.restore(restored, 4)
    assert len(manager.shrink(victim, 0, checkpoint=True)) == 0
    manager.begin_step()
    assert manager.usage().num_host_slots_used == 0


def test_positions_grown_in_this_step_are_not_copied() -> None:
    """They are computed after the copies are made."""
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 3)
    manager.grow(victim, 2)
    copies = manager.shrink(victim, 1, checkpoint=True)
    assert len(copies) == 2
    assert manager.num_restorable(victim) == 2


def test_giving_up_what_grew_in_this_step_drops_the_copies_beyond_it() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 6)
    manager.shrink(victim, 3, checkpoint=True)
    manager.begin_step()
    manager.grow(victim, 1)
    assert manager.num_restorable(victim) == 2
    manager.shrink(victim, 3, checkpoint=True)
    assert manager.num_restorable(victim) == 0


def test_copies_of_a_failed_step_can_be_taken_back() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 4)
    manager.shrink(victim, 0, checkpoint=True)
    manager.discard_copies(victim)
    assert manager.num_restorable(victim) == 0
    manager.begin_step()
    assert manager.usage().num_host_slots_used == 0


def test_closing_a_row_frees_its_slots_and_its_copies() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 6)
    manager.shrink(victim, 2, checkpoint=True)
    manager.close(victim)
    manager.begin_step()
    usage = manager.usage()
    assert (usage.num_free_blocks, usage.num_host_slots_used) == (8, 0)
    manager.check_invariants()


def test_restoring_more_than_the_host_has_is_refused_as_our_own_bug() -> None:
    manager = make_manager(num_host_slots=8)
    victim = make_victim(manager, 6)
    manager.shrink(victim, 4, checkpoint=True)
    with pytest.raises(AssertionError, match="3 positions to restore, 2 on the host"):
        manager.restore(victim, 3)


def test_restoring_without_room_is_refused_as_our_own_bug() -> None:
    manager = make_manager(num_blocks=1, num_host_slots=8)
    victim = make_victim(manager, 4)
    manager.shrink(victim, 0, checkpoint=True)
    open_row(manager, HEAD, 4)
    with pytest.raises(AssertionError, match="no room to restore 4 positions"):
        manager.restore(victim, 4)


def test_keeping_more_than_is_held_is_refused_as_our_own_bug() -> None:
    manager = make_manager()
    victim = make_victim(manager, 4)
    with pytest.raises(AssertionError, match="cannot keep 5 of 4 positions"):
        manager.shrink(victim, 5, checkpoint=False)
