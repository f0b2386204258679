"""The budget of a plan: growth and reclaim tried on a copy of the pool, which the manager may adopt as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kv.block import INDEX_OF_SIDE, Indices
from kv.pool import Pool
from kv.types import Row, Side

_NO_ROWS: Indices = np.empty(0, np.intp)


class KVBudget:
    """A plan's arithmetic, on the pool's own code: what was counted in here, `KVCacheManager.adopt` makes real.

    Owned by the plan that asked for it. Making one is free: the manager's pool is copied (a few memcpys, 10 bytes a
    block) when something must be counted in. Decodes are not, as long as free blocks suffice for all of them anyway.

    To be adopted, a plan gives up before it grows, row by row, and lets each row grow once. `opened`: the rows of
    requests that had none, in the order of their calls. `cuts`: positions kept by each row that gave some up. `grown`:
    positions that each row held before it grew, but for decodes.
    """

    def __init__(self, pool: Pool, version: int) -> None:
        """version: number of the pool's state, by which the manager knows whether it still is in that state."""
        self.version = version
        self.opened: list[Row] = []
        self.cuts: dict[Row, int] = {}
        self.grown: dict[Row, int] = {}
        self._before = self._pool = pool
        self._decodes: list[Indices] = []  # rows that grew by one
        self._num_counted = 0  # of `_decodes`, that the pool knows of; the others are sure to find room
        self._num_sure = 0  # rows in those others

    def try_grow(self, row: Row | None, side: Side, num_slots: int) -> bool:
        """Count `num_slots` more positions of `row` in; return False, with nothing counted, when there is no room.

        `row=None` is a request that has no row yet: each such call stands for another request, opened on `side`.
        """
        pool = self._counted()
        grown = Row(pool.open_row(INDEX_OF_SIDE[side])) if row is None else row
        start = int(pool.held[grown])
        has_grown = pool.grow(grown, num_slots)
        if has_grown and num_slots:
            self.grown.setdefault(grown, start)
        if row is None and has_grown:
            self.opened.append(grown)
        elif row is None:
            pool.close_row(grown)
        return has_grown

    def try_grow_each_by_one(self, rows: Sequence[Row] | NDArray[np.int32] | NDArray[np.int64]) -> int:
        """Do `try_grow` by one slot for each of `rows` (distinct) in order, until one finds no room; return how many
        grew. A fraction of the time of single calls."""
        decodes = np.asarray(rows, np.intp)
        if self._num_sure + len(decodes) > self._pool.blocks.num_free:
            decodes = decodes[: self._counted().grow_each_by_one(decodes)]
            self._num_counted += 1
        else:
            self._num_sure += len(decodes)
        self._decodes.append(decodes)
        return len(decodes)

    def max_growth(self, row: Row | None, side: Side) -> int:
        """Return the largest `num_slots` for which `try_grow` would succeed now."""
        pool = self._counted()
        return pool.blocks.newcomer_room(INDEX_OF_SIDE[side]) if row is None else pool.max_growth(row)

    def shrink(self, row: Row, num_kept: int) -> None:
        """Count positions [num_kept, held) of `row` out; 0 is all that closing it gives back, too."""
        self._counted().shrink(row, num_kept)
        self.cuts[row] = num_kept

    def num_held(self, row: Row) -> int:
        """Return the positions of `row` that have a slot, with what this budget counted."""
        return int(self._counted().held[row])

    def tail_boundaries(self, row: Row) -> list[tuple[int, int]]:
        """Return where `row` can be cut, from its end backwards, block by block: (num_kept after giving up this tail,
        slots a NEW head gains by then, cumulatively).

        A gain is a rise of `max_growth(None, Side.HEAD)`: slots beside another head are none, nor is the middle that a
        new head could have entered anyway. Defined for a head's row alike, for real-time preempting real-time.
        """
        return self._counted().boundaries(row)

    def decodes(self) -> Indices:
        """Return the rows that grew by one in `try_grow_each_by_one`."""
        return _joined(self._decodes)

    def settled_pool(self) -> Pool:
        """Return the pool with everything counted in, for the manager to go on with. Asserts that it may."""
        rows = np.concatenate((self.decodes(), np.fromiter(self.grown, np.intp)))
        assert np.bincount(rows).max(initial=0) <= 1, "a row of an adopted budget grew more than once"
        for row, num_kept in self.cuts.items():
            assert self.grown.get(row, num_kept) == num_kept, f"row {row} of an adopted budget grew before it was cut"
        if self._pool is self._before:  # nothing but sure decodes: no copy is needed
            self._count_decodes()
            return self._pool
        return self._counted()

    def _counted(self) -> Pool:
        """Return the budget's own pool, with everything counted in."""
        if self._pool is self._before:
            self._pool = self._before.copy()
        if self._num_sure:
            self._count_decodes()
        return self._pool

    def _count_decodes(self) -> None:
        sure = self._decodes[self._num_counted :]
        rows = _joined(sure)
        each = [rows] if len(sure) == 1 or np.bincount(rows).max(initial=0) <= 1 else sure  # each row once in a call
        num_grown = sum(map(self._pool.grow_each_by_one, each))
        assert num_grown == len(rows), f"{num_grown} of {len(rows)} sure decodes found room"
        self._num_counted, self._num_sure = len(self._decodes), 0


def _joined(parts: Sequence[Indices]) -> Indices:
    return parts[0] if len(parts) == 1 else np.concatenate((_NO_ROWS, *parts))
