"""The pool: rows that hold ends of blocks, without a word about slot tables or the host.

The columns over rows and ends are those of kv/block.py, whose loops do the work. `copy()` is a few memcpys: the budget
of a plan is a copy of the pool on which the plan's growth is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kv import block
from kv.block import (
    BLOCK_SIZE,
    FREE_BLOCKS,
    HELD,
    HELD_BLOCKS,
    IS_SHARED,
    LAST,
    NONE,
    NUM_NUMBERS,
    SIDE,
    TAILS_FROM_RIGHT,
    Chain,
    EndColumns,
    Indices,
    Numbers,
    RowColumns,
)
from kv.types import KVConfig, Layout

_MIN_ROWS = 64


class Pool:
    """Rows and the blocks they hold. Deterministic: the same calls give the same blocks."""

    def __init__(self, config: KVConfig) -> None:
        self.block_size = config.block_size
        self.closed_rows: list[int] = []
        self.rows: RowColumns = np.zeros((3, 0), np.int64)
        self.ends: EndColumns = np.zeros((3, 2 * config.num_blocks), np.int16)
        self.previous: Chain = np.full(2 * config.num_blocks, NONE, np.int32)
        self.numbers: Numbers = np.zeros(NUM_NUMBERS, np.int64)
        self.numbers[FREE_BLOCKS] = config.num_blocks
        self.numbers[BLOCK_SIZE] = config.block_size
        self.numbers[IS_SHARED] = config.layout is Layout.TWO_ENDED
        self.numbers[TAILS_FROM_RIGHT] = config.layout is not Layout.WHOLE_BLOCK
        self._bind()

    def _bind(self) -> None:
        self.held: Indices = self.rows[HELD]  # positions by row
        self.columns = self.rows, self.ends, self.previous, self.numbers

    def copy(self) -> Pool:
        """Return an independent pool in the same state."""
        pool = object.__new__(Pool)
        pool.block_size = self.block_size
        pool.closed_rows = self.closed_rows.copy()
        pool.rows, pool.ends = self.rows.copy(), self.ends.copy()
        pool.previous, pool.numbers = self.previous.copy(), self.numbers.copy()
        pool._bind()
        return pool

    # Questions

    @property
    def num_rows(self) -> int:
        """Rows the columns have, open or not."""
        return self.rows.shape[1]

    @property
    def num_free_blocks(self) -> int:
        return int(self.numbers[FREE_BLOCKS])

    def num_held_blocks(self, side: int) -> int:
        """Return the blocks that heads hold, or tails."""
        return int(self.numbers[HELD_BLOCKS + side])

    def num_held_slots(self, side: int) -> int:
        """Return the slots that heads hold, or tails."""
        return int(self.rows[HELD, self.rows[SIDE] == side].sum())

    def fills(self) -> NDArray[np.int16]:
        """Return int16 [2, blocks]: how many slots of each block a head holds, and a tail."""
        fills: NDArray[np.int16] = self.ends[block.FILL].reshape(2, -1)
        return fills

    def is_open(self, row: int) -> bool:
        """Whether `row` was opened and not closed since."""
        return 0 <= row < self.num_rows and bool(self.rows[SIDE, row] != NONE)

    def side_of(self, row: int) -> int:
        """Return HEAD or TAIL; NONE of a row that is not open."""
        return int(self.rows[SIDE, row])

    def last_end(self, row: int) -> int:
        """Return the end where the last position of `row` is; NONE where it holds nothing."""
        return int(self.rows[LAST, row])

    def newcomer_room(self, side: int) -> int:
        """Return the slots that a row new on `side` could take in all."""
        return block.newcomer_room(self.ends, self.numbers, side)

    def max_growth(self, row: int) -> int:
        """Return the largest `num_slots` that `grow(row, num_slots)` can give."""
        return block.max_growth(self.rows, self.ends, self.numbers, row)

    def boundaries(self, row: int) -> list[tuple[int, int]]:
        """From the end of `row` backwards, end by end: (positions kept without it, slots a new head gains so far)."""
        return [(num_kept, num_gained) for num_kept, num_gained in block.boundaries(*self.columns, row).tolist()]

    # Rows

    def open_row(self, side: int) -> int:
        """Return a row that holds nothing yet."""
        if not self.closed_rows:
            self._add_rows()
        row = self.closed_rows.pop()
        self.rows[SIDE, row] = side
        return row

    def close_rows(self, rows: Sequence[int]) -> None:
        """Free what `rows` hold, and the rows themselves."""
        for row in rows:
            block.shrink(*self.columns, row, 0)
            self.rows[SIDE, row] = NONE
        self.closed_rows.extend(rows)

    def _add_rows(self) -> None:
        num_rows, num_added = self.num_rows, max(self.num_rows, _MIN_ROWS)
        self.closed_rows.extend(range(num_rows + num_added - 1, num_rows - 1, -1))
        self.rows = np.pad(self.rows, ((0, 0), (0, num_added)))
        self.rows[LAST, num_rows:] = self.rows[SIDE, num_rows:] = NONE
        self._bind()

    # Growing and giving up

    def grow(self, row: int, num_slots: int) -> bool:
        """Give `row` slots for `num_slots` more positions; return False, with nothing changed, when there is no room.

        First the middle of its own last block, then other blocks in the order of `kv.block.grow`.
        """
        return block.grow(*self.columns, row, num_slots)

    def grow_each_by_one(self, rows: Indices) -> int:
        """Do `grow(row, 1)` for each of `rows` (distinct) in order until one finds no room; return how many grew."""
        return block.grow_each_by_one(*self.columns, rows)

    def shrink(self, row: int, num_kept: int) -> None:
        """Take positions [num_kept, held) from `row`, which then sleeps: it is settled until it grows again."""
        num_held = int(self.rows[HELD, row])
        assert 0 <= num_kept <= num_held, f"row {row}: cannot keep {num_kept} of {num_held} positions"
        block.shrink(*self.columns, row, num_kept)
