"""Factories and strategies of the KV tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from kv.manager import KVCacheManager
from kv.types import KVConfig, Layout, Row, Side


def make_manager(
    num_blocks: int = 8,
    block_size: int = 4,
    *,
    num_host_slots: int = 0,
    layout: Layout = Layout.TWO_ENDED,
    max_seq_len: int = 64,
) -> KVCacheManager:
    """Return an empty cache of few, small blocks."""
    return KVCacheManager(KVConfig(num_blocks, block_size, max_seq_len, num_host_slots, layout))


def open_row(manager: KVCacheManager, side: Side, num_slots: int = 0) -> Row:
    """Open a row and grow it by `num_slots`, for which there must be room."""
    row = manager.open(side)
    assert manager.grow(row, num_slots)
    return row


def slots_of(manager: KVCacheManager, row: Row) -> list[int]:
    """Return the slots of `row` by position."""
    slots: list[int] = manager.slot_table[row, : manager.num_held(row)].tolist()
    return slots


def snapshot(manager: KVCacheManager, rows: list[Row]) -> object:
    """Return all that a caller can see, to compare before and after."""
    slots = [slots_of(manager, row) for row in rows]
    growth = [manager.budget().max_growth(row, Side.HEAD) for row in rows]
    fills = np.concatenate(manager.block_fills()).tolist()
    return slots, growth, [manager.num_restorable(row) for row in rows], manager.usage(), fills


def configs(max_blocks: int = 6, max_host_slots: int = 10) -> st.SearchStrategy[KVConfig]:
    """Draw small caches of every layout."""
    return st.builds(
        KVConfig,
        num_blocks=st.integers(1, max_blocks),
        block_size=st.integers(1, 4),
        max_seq_len=st.just(24),
        num_host_slots=st.integers(0, max_host_slots),
        num_host_prefix_slots=st.integers(0, 2 * max_host_slots),
        layout=st.sampled_from([Layout.TWO_ENDED, Layout.TWO_ENDED, Layout.UNSHARED, Layout.WHOLE_BLOCK]),
    )
