"""The invariants of the cache, which hold between any two calls of the manager.

The checks derive every count that is kept for speed again, from the rows' chains of ends and the fill of each end.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kv.block import (
    BASE,
    EVICTS_BY_CLASS,
    FILL,
    FIRST_FREE,
    GROWS,
    HEAD,
    HELD,
    IS_CACHED,
    IS_SHARED,
    LAST,
    NONE,
    NUM_CACHED,
    PARENT,
    PIN,
    ROOM,
    SETTLED,
    SIDE,
    TAIL,
    TAILS_FROM_RIGHT,
    Indices,
)
from kv.checkpoint import HostPool
from kv.pool import Pool
from kv.table import SlotTable
from kv.types import KVConfig, Layout


def check_invariants(config: KVConfig, pool: Pool, table: SlotTable, host: HostPool) -> None:
    """Assert every invariant of the cache. It costs O(slots)."""
    _check_rows(pool)
    _check_lenders(pool)
    fill = _derived_fill(config, pool)
    _check_fronts(config, fill)
    _check_columns(config, pool, fill)
    _check_counts(config, pool, fill)
    _check_slots(config, pool, table)
    host.check_invariants()
    for row in pool.closed_rows:
        assert host.num_copies(row) == 0, f"closed row {row} has copies on the host"


def _check_rows(pool: Pool) -> None:
    """Each row is either open or in `closed_rows`. A row has ends exactly where it owns positions."""
    assert sorted(pool.closed_rows) == np.flatnonzero(pool.rows[SIDE] == NONE).tolist(), (
        "closed_rows are not the closed rows"
    )
    assert not pool.losses, "the index was not told of a loss"
    for row, (held, last, base) in enumerate(pool.rows[[HELD, LAST, BASE]].T.tolist()):
        assert held == 0 or pool.side_of(row) != NONE, f"closed row {row} holds positions"
        assert (last == NONE) == (held == base), f"row {row}: {held} positions, {base} borrowed, and last end {last}"


def _check_lenders(pool: Pool) -> None:
    """A row borrows positions that its parent holds, and some that the parent owns. PIN is the most borrowed."""
    pins = np.zeros(pool.num_rows, np.intp)
    for row, (base, parent) in enumerate(pool.rows[[BASE, PARENT]].T.tolist()):
        assert (parent == NONE) == (base == 0), f"row {row} borrows {base} positions from {parent}"
        if parent != NONE:
            assert pool.side_of(parent) != NONE, f"row {row} borrows from closed row {parent}"
            assert pool.rows[BASE, parent] < base <= pool.held[parent], f"row {row} borrows from the wrong row {parent}"
            pins[parent] = max(pins[parent], base)
    assert np.array_equal(pool.rows[PIN], pins), "the borrowed part of a row has drifted"
    cached = np.flatnonzero(pool.rows[IS_CACHED])
    assert pool.num_cached == len(cached) == int(pool.numbers[NUM_CACHED]), "the number of cached rows has drifted"
    for row in cached.tolist():
        assert pool.side_of(row) != NONE, f"closed row {row} is cached"
        assert pool.held[row] > pool.rows[BASE, row], f"cached row {row} owns nothing"


def _derived_fill(config: KVConfig, pool: Pool) -> Indices:
    """Return [ends]: the slots at each end, from the chains. At most one row holds an end, and it has a slot there."""
    fill = np.zeros(2 * config.num_blocks, np.intp)
    for row in _open_rows(pool):
        stop = int(pool.held[row])
        for end, start in _chain(pool, row):
            assert 0 <= start < stop, f"row {row}: positions {start} to {stop} at end {end}"
            assert end // config.num_blocks == pool.side_of(row), f"row {row} holds end {end} of the other side"
            assert fill[end] == 0, f"two rows hold end {end}"
            fill[end], stop = stop - start, start
        assert stop == pool.rows[BASE, row], f"row {row}: positions up to {stop} are at no end"
    return fill


def _check_fronts(config: KVConfig, fill: Indices) -> None:
    """head_fill + tail_fill <= block_size. Without sharing, one of the two is 0."""
    heads, tails = fill.reshape(2, -1)
    assert np.all(heads + tails <= config.block_size), "a block is overfull"
    if config.layout is not Layout.TWO_ENDED:
        assert not np.any((heads > 0) & (tails > 0)), "a block is shared"


def _check_columns(config: KVConfig, pool: Pool, fill: Indices) -> None:
    """FILL and ROOM agree with the chains. A row grows in no block but its last."""
    assert np.array_equal(pool.ends[FILL], fill), "fill has drifted from the chains"
    grows = pool.ends[GROWS].astype(bool)
    last = [pool.last_end(row) for row in _open_rows(pool)]
    assert set(grows.nonzero()[0].tolist()) <= set(last), "a row grows outside its last block"

    beside, beside_grows = np.roll(fill, config.num_blocks), np.roll(grows, config.num_blocks)
    has_room = (fill == 0) & (beside > 0) & (beside < config.block_size) & (config.layout is Layout.TWO_ENDED)
    rank = np.where(has_room, config.block_size - beside + np.where(beside_grows, 0, SETTLED), 0)
    assert np.array_equal(pool.ends[ROOM], rank), "the rooms have drifted from the fill"
    assert pool.numbers[IS_SHARED] == (config.layout is Layout.TWO_ENDED)
    assert pool.numbers[TAILS_FROM_RIGHT] == (config.layout is not Layout.WHOLE_BLOCK)
    assert pool.numbers[EVICTS_BY_CLASS] == config.evicts_by_class


def _check_counts(config: KVConfig, pool: Pool, fill: Indices) -> None:
    """free + head + tail slots = all slots. The counts of blocks agree with the chains."""
    heads, tails = fill.reshape(2, -1)
    num_free_slots = int((config.block_size - heads - tails).sum())
    assert num_free_slots + int((pool.held - pool.rows[BASE]).sum()) == config.num_slots, "slots are lost"
    free = np.flatnonzero(heads + tails == 0)
    assert pool.num_free_blocks == len(free), "the number of free blocks has drifted"
    for side, fills in ((HEAD, heads), (TAIL, tails)):
        assert pool.num_held_blocks(side) == np.count_nonzero(fills), "the number of held blocks has drifted"
    first = pool.numbers[FIRST_FREE:]
    assert not np.any(free < first[HEAD]), "a free block lies before the first from the low end"
    assert not np.any(config.num_blocks - 1 - free < first[TAIL]), (
        "a free block lies before the first from the high end"
    )


def _check_slots(config: KVConfig, pool: Pool, table: SlotTable) -> None:
    """Every slot in the table lies at an end of its row, without a gap. No slot has two owners."""
    size = config.block_size
    seen = np.zeros(config.num_slots, np.bool_)
    for row in _open_rows(pool):
        stop = int(pool.held[row])
        slots = table.slots[row, :stop]
        for end, start in _chain(pool, row):
            offsets = slots[start:stop] - end % config.num_blocks * size
            if pool.side_of(row) == TAIL and config.layout is not Layout.WHOLE_BLOCK:
                offsets = size - 1 - offsets
            assert np.array_equal(offsets, np.arange(stop - start)), f"row {row}: wrong slots at end {end}"
            stop = start
        base, parent = pool.rows[[BASE, PARENT], row].tolist()
        assert np.array_equal(slots[:base], table.slots[parent, :base]), f"row {row}: wrong slots borrowed of {parent}"
        assert not seen[slots[base:]].any(), f"row {row}: a slot has two owners"
        seen[slots[base:]] = True


def _open_rows(pool: Pool) -> list[int]:
    """Return the rows of requests and the cached rows."""
    return [row for row in range(pool.num_rows) if pool.side_of(row) != NONE]


def _chain(pool: Pool, row: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of `row`, the last one first, each with its first position there."""
    end, start = pool.last_end(row), int(pool.held[row])
    while end != NONE:
        start -= int(pool.ends[FILL, end])
        yield end, start
        end = int(pool.previous[end])
