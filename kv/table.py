"""The slot table: for each row and position, the slot that holds its K and V."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kv import block
from kv.block import Indices
from kv.pool import Pool


class SlotTable:
    """int32 [rows, max_seq_len]: the slot of each position. Entries from a row's length on have no meaning."""

    def __init__(self, max_seq_len: int) -> None:
        self.slots: NDArray[np.int32] = np.zeros((0, max_seq_len), np.int32)

    def add_rows(self, num_rows: int, max_held: int) -> None:
        """Enlarge the table to `num_rows`. The present rows hold at most `max_held` positions each."""
        slots = np.zeros((num_rows, self.slots.shape[1]), np.int32)  # the system maps a page at its first write
        slots[: len(self.slots), :max_held] = self.slots[:, :max_held]
        self.slots = slots

    def write_last(self, pool: Pool, rows: Indices) -> None:
        """Write the slot of the last position of each of `rows`."""
        block.write_last(pool.rows, pool.ends, pool.numbers, self.slots, rows)

    def write_from(self, pool: Pool, row: int, start: int) -> None:
        """Write the slots of positions [start, held) of `row`."""
        block.write_from(*pool.columns, self.slots, row, start)
