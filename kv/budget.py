"""The budget of a plan: growth and reclaim tried on a copy of the pool, so that nothing moves in the manager."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kv.block import INDEX_OF_SIDE, Indices
from kv.pool import Pool
from kv.types import Row, Side


class KVBudget:
    """Arithmetic twin of the manager for one plan: `try_grow` here succeeds exactly when `grow` in the same order will.

    Owned by the plan that asked for it. Making one is free: the manager's pool is copied (a few memcpys, 10 bytes a
    block) when something must be counted in. Decodes are not, as long as free blocks suffice for all of them anyway.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._is_copy = False
        self._decodes: list[Indices] = []  # rows that grow by one for sure; not counted in yet

    def try_grow(self, row: Row | None, side: Side, num_slots: int) -> bool:
        """Count `num_slots` more positions of `row` in; return False, with nothing counted, when there is no room.

        `row=None` is a request that has no row yet: each such call stands for another request, opened on `side`.
        """
        pool = self._counted()
        return pool.grow(pool.open_row(INDEX_OF_SIDE[side]) if row is None else row, num_slots)

    def try_grow_each_by_one(self, rows: Sequence[Row] | NDArray[np.int32]) -> int:
        """Do `try_grow` by one slot for each of `rows` (distinct) in order, until one finds no room; return how many
        grew. A fraction of the time of single calls."""
        decodes = np.asarray(rows, np.intp)
        sure = np.concatenate((*self._decodes, decodes))
        is_once_each = np.bincount(sure).max(initial=0) <= 1
        if is_once_each and self._pool.has_free_blocks_for(sure):
            self._decodes.append(decodes)
            return len(decodes)
        return self._counted().grow_each_by_one(decodes)

    def max_growth(self, row: Row | None, side: Side) -> int:
        """Return the largest `num_slots` for which `try_grow` would succeed now."""
        pool = self._counted()
        return pool.blocks.newcomer_room(INDEX_OF_SIDE[side]) if row is None else pool.max_growth(row)

    def shrink(self, row: Row, num_kept: int) -> None:
        """Count positions [num_kept, held) of `row` out; 0 is all that closing it gives back, too."""
        self._counted().shrink(row, num_kept)

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

    def _counted(self) -> Pool:
        """Return the budget's own pool, with everything counted in."""
        if not self._is_copy:
            self._pool, self._is_copy = self._pool.copy(), True
        if self._decodes:
            rows = np.concatenate(self._decodes)
            self._decodes.clear()
            num_grown = self._pool.grow_each_by_one(rows)
            assert num_grown == len(rows), f"{num_grown} of {len(rows)} sure decodes found room"
        return self._pool
