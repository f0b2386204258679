"""The slot table: for each row and position, the slot that holds its K and V."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kv.block import Indices
from kv.pool import Pool, Run


class SlotTable:
    """Slots by row and position, written from the pool's runs. Entries at and beyond a row's length mean nothing."""

    def __init__(self, max_seq_len: int) -> None:
        self.slots: NDArray[np.int32] = np.zeros((0, max_seq_len), np.int32)

    def add_rows(self, num_rows: int, max_held: int) -> None:
        """Enlarge the table to `num_rows`, of which the present ones hold `max_held` positions at most."""
        slots = np.zeros((num_rows, self.slots.shape[1]), np.int32)  # pages that nobody writes cost nothing
        slots[: len(self.slots), :max_held] = self.slots[:, :max_held]
        self.slots = slots

    def write_last(self, pool: Pool, rows: Indices) -> None:
        """Write the slot of the last position of each of `rows`."""
        positions = pool.held[rows] - 1
        self.slots[rows, positions] = pool.origin[rows] + pool.step[rows] * positions

    def write_from(self, pool: Pool, row: int, start: int) -> None:
        """Write the slots of positions [start, held) of `row`."""
        num_held = int(pool.held[row])
        runs = _runs_down_to(pool.last_run(row), start)
        starts = [start, *(run.start for run in runs[1:])]
        lengths = [stop - first for first, stop in zip(starts, [*starts[1:], num_held], strict=True)]
        origins = np.array(pool.origins_of(row, runs), np.intp).repeat(lengths)
        self.slots[row, start:num_held] = origins + int(pool.step[row]) * np.arange(start, num_held)


def _runs_down_to(run: Run | None, start: int) -> list[Run]:
    """Return the runs that hold positions at or beyond `start`, in the order of positions."""
    runs: list[Run] = []
    while run is not None:
        runs.append(run)
        run = run.previous if run.start > start else None
    return runs[::-1]
