"""What must hold between any two calls of the manager, in one place (design: bros.md §4).

Everything kept for speed is derived again here from the rows' runs, which are derived from nothing.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kv.block import HEAD, TAIL
from kv.checkpoint import HostPool
from kv.pool import Indices, Pool, Run
from kv.table import SlotTable
from kv.types import Layout

Scalar = TypeVar("Scalar", bound=np.generic)


def check_invariants(pool: Pool, table: SlotTable, host: HostPool) -> None:
    """Assert every invariant of the cache; O(slots), for tests and for production when in doubt."""
    _check_rows(pool)
    fill = _derived_fill(pool)
    _check_blocks(pool, fill)
    _check_counts(pool, fill)
    _check_slots(pool, table)
    host.check_invariants()
    for row in pool.closed_rows:
        assert host.num_copies(row) == 0, f"closed row {row} has copies on the host"


def _check_rows(pool: Pool) -> None:
    """A row is either open or waits to be opened; its columns agree with its runs."""
    assert sorted(pool.closed_rows) == [row for row in range(pool.num_rows) if not pool.is_open(row)]
    for row in pool.closed_rows:
        assert pool.held[row] == 0, f"closed row {row} holds positions"
    for row in range(pool.num_rows):
        held, run = int(pool.held[row]), pool.last_run(row)
        assert 0 <= pool.written[row] <= held, f"row {row}: {pool.written[row]} of {held} positions are written"
        assert (run is None) == (held == 0), f"row {row}: {held} positions and last run {run}"
        if run is not None:
            assert pool.origin[row] == pool.origins(row, *_columns([run]))[0], f"row {row}: stale origin"


def _derived_fill(pool: Pool) -> NDArray[np.intp]:
    """Count the slots at each end of each block from the runs: at most one holder at an end, no run empty."""
    fill = np.zeros(2 * pool.stride, np.intp)
    for row in _open_rows(pool):
        base = pool.side_of(row) * pool.stride
        for run, end in _runs(pool, row):
            assert 0 <= run.start < end, f"row {row}: empty run in block {run.block}"
            assert 0 <= run.block < pool.nowhere, f"row {row}: no block {run.block}"
            assert fill[base + run.block] == 0, f"block {run.block}: two holders at one end"
            fill[base + run.block] = end - run.start
    return fill


def _check_blocks(pool: Pool, fill: NDArray[np.intp]) -> None:
    """head_fill + tail_fill <= block_size; what newcomers are told about a block is true."""
    size = pool.config.block_size
    heads, tails = fill[: pool.nowhere], fill[pool.stride : -1]
    assert np.all(heads + tails <= size), "a block is overfull"
    if pool.config.layout is not Layout.TWO_ENDED:
        assert not np.any((heads > 0) & (tails > 0)), "a block is shared"
    fill[pool.nowhere] = size
    assert np.array_equal(pool.fill, fill), "fill has drifted from the runs"

    grows = np.zeros(2 * pool.stride, np.bool_)
    for row in _open_rows(pool):
        run, base = pool.last_run(row), pool.side_of(row) * pool.stride
        if pool.open[row] != base + pool.nowhere:
            assert run is not None, f"row {row} holds nothing, yet grows"
            assert pool.open[row] == base + run.block, f"row {row} grows outside its last block"
            grows[pool.open[row]] = True
    assert np.array_equal(pool.grows, grows), "grows has drifted from the rows"

    for side, other in ((HEAD, TAIL), (TAIL, HEAD)):
        own, opposite = _half(pool, fill, side), _half(pool, fill, other)
        rank = pool.rank_beside[_half(pool, grows, other).astype(np.intp), opposite]
        expected = np.where(own == 0, rank, 0)
        assert np.array_equal(_half(pool, pool.shared_room, side), expected), "shared_room has drifted from the fill"


def _check_counts(pool: Pool, fill: NDArray[np.intp]) -> None:
    """free + head + tail slots = all slots, and the counts of blocks are those of the columns."""
    heads, tails = fill[: pool.nowhere], fill[pool.stride : -1]
    free_slots = int((pool.config.block_size - heads - tails).sum())
    assert free_slots + int(pool.held.sum()) == pool.config.num_slots, "slots are lost"
    free_blocks = np.flatnonzero(heads + tails == 0)
    assert pool.num_free_blocks == len(free_blocks), "num_free_blocks has drifted"
    assert not np.any(free_blocks < pool.first_free[HEAD]), "a free block is below the first"
    assert not np.any(pool.nowhere - 1 - free_blocks < pool.first_free[TAIL]), "a free block is above the last"
    assert pool.num_runs == [int(np.count_nonzero(heads)), int(np.count_nonzero(tails))], "num_runs has drifted"


def _check_slots(pool: Pool, table: SlotTable) -> None:
    """Every slot table entry lies in an end its row holds; no slot is in two places."""
    size, fills_left = pool.config.block_size, pool.config.layout is Layout.WHOLE_BLOCK
    seen = np.zeros(pool.config.num_slots, np.bool_)
    for row in _open_rows(pool):
        slots = table.slots[row, : pool.held[row]]
        for run, end in _runs(pool, row):
            offsets = slots[run.start : end] - run.block * size
            if pool.side_of(row) == TAIL and not fills_left:
                offsets = size - 1 - offsets
            assert np.array_equal(offsets, np.arange(end - run.start)), f"row {row}: wrong slots in block {run.block}"
        assert not seen[slots].any(), f"row {row}: a slot is in two tables"
        seen[slots] = True


def _open_rows(pool: Pool) -> list[int]:
    return [row for row in range(pool.num_rows) if pool.is_open(row)]


def _runs(pool: Pool, row: int) -> list[tuple[Run, int]]:
    """Return the runs of `row` from its end backwards, each with the position at which it ends."""
    found: list[tuple[Run, int]] = []
    run, end = pool.last_run(row), int(pool.held[row])
    while run is not None:
        found.append((run, end))
        end = run.start
        run = run.previous
    return found


def _columns(runs: list[Run]) -> tuple[Indices, Indices]:
    return np.array([run.block for run in runs], np.intp), np.array([run.start for run in runs], np.intp)


def _half(pool: Pool, column: NDArray[Scalar], side: int) -> NDArray[Scalar]:
    return column[side * pool.stride : (side + 1) * pool.stride]
