"""What must hold between any two calls of the manager, in one place (design: bros.md §4).

Everything kept for speed is derived again here from the rows' runs, which are derived from nothing.
"""

from __future__ import annotations

import numpy as np

from kv.block import HEAD, TAIL, Indices
from kv.checkpoint import HostPool
from kv.pool import Pool
from kv.table import SlotTable
from kv.types import KVConfig, Layout


def check_invariants(config: KVConfig, pool: Pool, table: SlotTable, host: HostPool) -> None:
    """Assert every invariant of the cache; O(slots), for tests and for production when in doubt."""
    _check_rows(pool)
    fill = _derived_fill(config, pool)
    _check_fronts(config, fill)
    _check_columns(pool, fill)
    _check_counts(config, pool, fill)
    _check_slots(config, pool, table)
    host.check_invariants()
    for row in pool.closed_rows:
        assert host.num_copies(row) == 0, f"closed row {row} has copies on the host"


def _check_rows(pool: Pool) -> None:
    """A row is either open or waits to be opened; its columns agree with its runs."""
    assert sorted(pool.closed_rows) == [row for row in range(pool.num_rows) if not pool.is_open(row)]
    for row in range(pool.num_rows):
        held, run = int(pool.held[row]), pool.last_run(row)
        assert held == 0 or pool.is_open(row), f"closed row {row} holds positions"
        assert (run is None) == (held == 0), f"row {row}: {held} positions and last run {run}"
        if run is not None:
            assert pool.origin[row] == pool.origin_of(row, run), f"row {row}: stale origin"


def _derived_fill(config: KVConfig, pool: Pool) -> Indices:
    """Count the slots at each end of each block from the runs: at most one holder at an end, no run empty."""
    stride = pool.blocks.stride
    fill = np.zeros(2 * stride, np.intp)
    for row in _open_rows(pool):
        for end, start, stop in _runs(pool, row):
            assert 0 <= start < stop, f"row {row}: empty run at end {end}"
            assert end // stride == pool.side_of(row), f"row {row}: run at end {end} of the other side"
            assert end % stride < config.num_blocks, f"row {row}: no block has end {end}"
            assert fill[end] == 0, f"end {end} has two holders"
            fill[end] = stop - start
    return fill


def _check_fronts(config: KVConfig, fill: Indices) -> None:
    """head_fill + tail_fill <= block_size; without sharing, one of the two is 0."""
    heads, tails = fill.reshape(2, -1)
    assert np.all(heads + tails <= config.block_size), "a block is overfull"
    if config.layout is not Layout.TWO_ENDED:
        assert not np.any((heads > 0) & (tails > 0)), "a block is shared"


def _check_columns(pool: Pool, fill: Indices) -> None:
    """What the blocks know about their holders, and tell newcomers, is true; `nowhere` is full."""
    blocks = pool.blocks
    kept = blocks.fill.copy()
    assert kept[blocks.nowhere] == blocks.size, "there is room nowhere"
    kept[blocks.nowhere] = 0
    assert np.array_equal(kept, fill), "fill has drifted from the runs"

    grows = np.zeros(2 * blocks.stride, np.bool_)
    for row in _open_rows(pool):
        if pool.open[row] != pool.side_of(row) * blocks.stride + blocks.nowhere:
            run = pool.last_run(row)
            assert run is not None, f"row {row} holds nothing, yet grows"
            assert pool.open[row] == run[0], f"row {row} grows outside its last block"
            grows[run[0]] = True
    assert np.array_equal(blocks.grows, grows), "grows has drifted from the rows"

    opposite = (np.arange(2 * blocks.stride) + blocks.stride) % (2 * blocks.stride)
    rank = np.where(fill == 0, blocks.rank_beside[grows[opposite].astype(np.intp), fill[opposite]], 0)
    assert np.array_equal(blocks.shared_room, rank), "shared_room has drifted from the fill"


def _check_counts(config: KVConfig, pool: Pool, fill: Indices) -> None:
    """free + head + tail slots = all slots, and the counts of blocks are those of the columns."""
    blocks = pool.blocks
    heads, tails = fill.reshape(2, -1)[:, : config.num_blocks]
    num_free_slots = int((config.block_size - heads - tails).sum())
    assert num_free_slots + int(pool.held.sum()) == config.num_slots, "slots are lost"
    free = np.flatnonzero(heads + tails == 0)
    assert np.array_equal(blocks.is_free[HEAD].nonzero()[0], free), "is_free has drifted"
    assert blocks.num_free == len(free), "num_free has drifted"
    assert blocks.num_held == [int(np.count_nonzero(heads)), int(np.count_nonzero(tails))], "num_held has drifted"
    assert not np.any(free < blocks.first_free[HEAD]), "a free block lies before the first from the low end"
    assert not np.any(config.num_blocks - 1 - free < blocks.first_free[TAIL]), "… before the first from the high end"


def _check_slots(config: KVConfig, pool: Pool, table: SlotTable) -> None:
    """Every slot table entry lies at an end its row holds, filled without a gap; no slot is in two places."""
    size = config.block_size
    seen = np.zeros(config.num_slots, np.bool_)
    for row in _open_rows(pool):
        slots = table.slots[row, : pool.held[row]]
        for end, start, stop in _runs(pool, row):
            offsets = slots[start:stop] - end % pool.blocks.stride * size
            if pool.side_of(row) == TAIL and config.layout is not Layout.WHOLE_BLOCK:
                offsets = size - 1 - offsets
            assert np.array_equal(offsets, np.arange(stop - start)), f"row {row}: wrong slots at end {end}"
        assert not seen[slots].any(), f"row {row}: a slot is in two tables"
        seen[slots] = True


def _open_rows(pool: Pool) -> list[int]:
    return [row for row in range(pool.num_rows) if pool.is_open(row)]


def _runs(pool: Pool, row: int) -> list[tuple[int, int, int]]:
    """Return (end, start, stop) of each run of `row`, from its end backwards."""
    found: list[tuple[int, int, int]] = []
    run, stop = pool.last_run(row), int(pool.held[row])
    while run is not None:
        end, start, run = run
        found.append((end, start, stop))
        stop = start
    return found
