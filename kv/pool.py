"""The pool: rows and the ends of blocks that they hold. It knows neither slot tables nor the host.

Its arrays are those of kv/block.py, whose compiled loops do the work. `copy()` costs a few memcpys, so a plan's budget
can try the plan's growth on a copy of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kv import block
from kv.block import (
    BASE,
    BLOCK_SIZE,
    EVERYTHING,
    EVICTS_BY_CLASS,
    FREE_BLOCKS,
    HELD,
    HELD_BLOCKS,
    IS_CACHED,
    IS_SHARED,
    LAST,
    NONE,
    NUM_CACHED,
    NUM_EVICTED,
    NUM_NUMBERS,
    NUM_ROW_COLUMNS,
    PARENT,
    SIDE,
    TAILS_FROM_RIGHT,
    WRITTEN,
    Chain,
    EndColumns,
    Indices,
    Numbers,
    RowColumns,
)
from kv.types import KVConfig, Layout, Row

_MIN_ROWS = 64


class Loss(NamedTuple):
    """A row that lost positions, and how many it kept. is_rt_evicted: it was cached, and a head had used it."""

    row: Row
    num_kept: int
    is_rt_evicted: bool = False


class Pool:
    """Rows and the blocks they hold. Deterministic: the same calls give the same blocks."""

    def __init__(self, config: KVConfig) -> None:
        self.block_size = config.block_size
        self.closed_rows: list[int] = []
        self.losses: list[Loss] = []  # in order
        self.rows: RowColumns = np.zeros((NUM_ROW_COLUMNS, 0), np.int64)
        self.ends: EndColumns = np.zeros((3, 2 * config.num_blocks), np.int16)
        self.previous: Chain = np.full(2 * config.num_blocks, NONE, np.int32)
        self.numbers: Numbers = np.zeros(NUM_NUMBERS, np.int64)
        self.numbers[FREE_BLOCKS] = config.num_blocks
        self.numbers[BLOCK_SIZE] = config.block_size
        self.numbers[IS_SHARED] = config.layout is Layout.TWO_ENDED
        self.numbers[TAILS_FROM_RIGHT] = config.layout is not Layout.WHOLE_BLOCK
        self.numbers[EVICTS_BY_CLASS] = config.evicts_by_class
        self._bind()

    def _bind(self) -> None:
        self.held: Indices = self.rows[HELD]  # positions by row
        self.columns = self.rows, self.ends, self.previous, self.numbers

    def copy(self) -> Pool:
        """Return an independent pool in the same state."""
        pool = object.__new__(Pool)
        pool.block_size = self.block_size
        pool.closed_rows, pool.losses = self.closed_rows.copy(), self.losses.copy()
        pool.rows, pool.ends = self.rows.copy(), self.ends.copy()
        pool.previous, pool.numbers = self.previous.copy(), self.numbers.copy()
        pool._bind()
        return pool

    def begin_step(self) -> None:
        """Take all positions as computed."""
        self.rows[WRITTEN] = self.held

    # Questions

    @property
    def num_rows(self) -> int:
        """Rows in the arrays, open or not."""
        return self.rows.shape[1]

    @property
    def num_free_blocks(self) -> int:
        return self.numbers.item(FREE_BLOCKS)

    def num_held_blocks(self, side: int) -> int:
        """Return how many blocks the rows of `side` hold."""
        return int(self.numbers[HELD_BLOCKS + side])

    def num_held_slots(self, side: int, is_cached: bool = False) -> int:
        """Return the slots that rows of `side` own: the cached rows, or the rows of requests."""
        rows = self.rows
        is_asked = (rows[SIDE] == side) & (rows[IS_CACHED] == is_cached)
        return int(rows[HELD, is_asked].sum() - rows[BASE, is_asked].sum())

    @property
    def num_cached(self) -> int:
        """Cached rows: no request has them."""
        return self.numbers.item(NUM_CACHED)

    @property
    def num_evicted(self) -> int:
        """Slots evicted so far."""
        return int(self.numbers[NUM_EVICTED])

    def num_borrowed_cached(self) -> int:
        """Return how many slots cached rows own and requests borrow."""
        return block.num_borrowed_cached(self.rows, self.numbers)

    def fills(self) -> NDArray[np.int16]:
        """Return int16 [2, blocks]: the slots of each block that heads hold, and that tails hold, cached or not."""
        fills: NDArray[np.int16] = self.ends[block.FILL].reshape(2, -1)
        return fills

    def cached_fills(self) -> NDArray[np.int16]:
        """Return int16 [2, blocks]: the same for cached rows only."""
        fills: NDArray[np.int16] = block.cached_fill(*self.columns).reshape(2, -1)
        return fills

    def is_open(self, row: int) -> bool:
        """Whether a request has `row`: it is neither closed nor cached."""
        rows = self.rows
        is_there = 0 <= row < rows.shape[1] and rows.item(SIDE, row) != NONE
        return is_there and not rows.item(IS_CACHED, row)

    def can_lend(self, row: int, num_slots: int) -> bool:
        """Whether `row` still holds its first `num_slots` positions, and lost none of them according to `losses`."""
        is_whole = all(loss.num_kept >= num_slots for loss in self.losses if loss.row == row)
        return is_whole and int(self.held[row]) >= num_slots

    def extent(self, row: int) -> tuple[int, int]:
        """Return how many positions `row` holds, and how many of them were computed before this step."""
        return self.rows.item(HELD, row), self.rows.item(WRITTEN, row)

    def side_of(self, row: int) -> int:
        """Return HEAD or TAIL, or NONE for a closed row."""
        return int(self.rows[SIDE, row])

    def last_end(self, row: int) -> int:
        """Return the end that holds the last position of `row`, or NONE where `row` owns nothing."""
        return int(self.rows[LAST, row])

    def newcomer_room(self, side: int) -> int:
        """Return how many slots a new row on `side` could take."""
        return block.newcomer_room(self.ends, self.numbers, side)

    def most_new_blocks(self, rows: Indices) -> int:
        """Return how many free blocks `rows` can take if each grows by one slot."""
        return block.most_new_blocks(self.rows, self.ends, self.numbers, rows)

    def max_growth(self, row: int | None, side: int) -> int:
        """Return the largest `num_slots` that `grow` can give to `row`. None means a new row on `side`."""
        if row is None:
            return block.max_growth(*self.columns, NONE, side)
        return block.max_growth(*self.columns, row, self.side_of(row))

    def boundaries(self, row: int) -> list[tuple[int, int]]:
        """Return for each end of `row`, the last one first: (positions kept without it, slots a new head gains)."""
        return [(num_kept, num_gained) for num_kept, num_gained in block.boundaries(*self.columns, row).tolist()]

    # Rows

    def open_row(self, side: int) -> int:
        """Open a row on `side` and return it. It holds nothing."""
        if not self.closed_rows:
            self._add_rows()
        row = self.closed_rows.pop()
        self.rows[SIDE, row] = side
        return row

    def close_rows(self, rows: Sequence[int]) -> None:
        """Free `rows` and their slots. Positions that others borrow stay cached."""
        for row in rows:
            self.leave_cached(row, 0)

    def leave_cached(self, row: int, num_kept: int) -> int:
        """Take `row` from its request. Its first `num_kept` positions stay, and all that others borrow.

        Return how many stay.
        """
        num_kept = block.leave_cached(*self.columns, row, num_kept)
        if not num_kept:
            self.closed_rows.append(row)
        return num_kept

    def borrow(self, row: int, lender: int, num_slots: int) -> None:
        """Let `row` begin with the first `num_slots` positions of `lender`. It must hold nothing."""
        block.borrow(self.rows, self.numbers, row, lender, num_slots)

    def use(self, row: int, side: int) -> None:
        """Record that a row on `side` will borrow from `row`: it is evicted after all that were used before."""
        block.use(self.rows, self.numbers, row, side)

    def _add_rows(self) -> None:
        num_rows, num_added = self.num_rows, max(self.num_rows // 2, _MIN_ROWS)  # few: loops run over all rows
        self.closed_rows.extend(range(num_rows + num_added - 1, num_rows - 1, -1))
        self.rows = np.pad(self.rows, ((0, 0), (0, num_added)))
        self.rows[LAST, num_rows:] = self.rows[SIDE, num_rows:] = self.rows[PARENT, num_rows:] = NONE
        self._bind()

    # Growing and giving up

    def grow(self, row: int, num_slots: int) -> bool:
        """Give `row` slots for `num_slots` more positions. Return False, with nothing changed, when there is no room.

        `kv.block.grow` says in which order. Cached rows are evicted only where that finds no room.
        """
        if block.grow(*self.columns, row, num_slots):
            return True
        if not self.num_cached or self.max_growth(row, NONE) < num_slots:
            return False
        self.evict(row, NONE, num_slots)
        return block.grow(*self.columns, row, num_slots)

    def grow_each_by_one(self, rows: Indices) -> int:
        """Do `grow_each` by one slot for each of `rows`."""
        return self.grow_each(rows, np.ones(len(rows), np.int64))

    def grow_each(self, rows: Indices, num_slots: NDArray[np.int64]) -> int:
        """Grow each of `rows` by its `num_slots`, in order, until one finds no room. Return how many grew."""
        num_grown = block.grow_each(*self.columns, rows, num_slots)
        while num_grown < len(rows) and self.num_cached and self.grow(int(rows[num_grown]), int(num_slots[num_grown])):
            num_grown += 1
            num_grown += block.grow_each(*self.columns, rows[num_grown:], num_slots[num_grown:])
        return num_grown

    def shrink(self, row: int, num_kept: int) -> int:
        """Take positions [num_kept, held) from `row`, but none that others borrow. Return how many positions it keeps.

        The row is settled until it grows again.
        """
        num_held = int(self.rows[HELD, row])
        assert 0 <= num_kept <= num_held, f"row {row}: cannot keep {num_kept} of {num_held} positions"
        num_kept = block.shrink(*self.columns, row, num_kept)
        self.losses.append(Loss(Row(row), num_kept))
        return num_kept

    def evict(self, row: int | None, side: int, num_slots: int = EVERYTHING, num_free_blocks: int = 0) -> None:
        """Evict until `row` can grow by `num_slots` and `num_free_blocks` are free. None means a new row on `side`.

        Cached rows of the lowest USE (see kv/block.py) come first. Eviction stops early when only borrowed slots are
        left.
        """
        if not self.num_cached:
            return
        side = side if row is None else self.side_of(row)
        evicted = np.empty(
            (2 * self.num_cached, 3), np.int64
        )  # a row appears twice where its borrower was evicted between
        num = block.evict(*self.columns, NONE if row is None else row, side, num_slots, num_free_blocks, evicted)
        losses = list(map(Loss._make, evicted[:num].tolist()))
        self.closed_rows += [loss.row for loss in losses if not loss.num_kept]
        self.losses += losses
