"""The budget of a plan: a copy of the pool, on which the plan tries growth and cuts. The manager may adopt it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kv.block import HEAD, INDEX_OF_SIDE, Indices, ceil_div
from kv.pool import Pool
from kv.types import Row, Side

_NO_ROWS: Indices = np.empty(0, np.intp)


class KVBudget:
    """A trial of growth and cuts with the pool's own code. `KVCacheManager.adopt` makes it real. One plan owns it.

    A new budget costs nothing. While free blocks suffice for every growth so far, the budget only promises growth.
    Another call copies the pool (a few memcpys, 11 bytes a block) and does the promised growth on the copy. Where no
    copy was made, the manager does the promised growth on its own pool.

    The manager adopts a budget only if each row was cut before it grew, and grew once.

    opened    rows of requests that had none, in the order of the calls
    cuts      positions kept, by row that was cut
    grown     positions held before, by row that grew; `decodes` has the rows that grew by one
    """

    def __init__(self, pool: Pool, version: int) -> None:
        """version: the number of the manager's last change. `adopt` asserts that no other change came after it."""
        self.version = version
        self.opened: list[Row] = []
        self.cuts: dict[Row, int] = {}
        self.grown: dict[Row, int] = {}
        self._before = self._pool = pool
        self._decodes: list[Indices] = []  # rows that grew by one
        self._promised: list[Indices] = []  # rows whose growth is not done yet
        self._num_promised = 0  # of these rows
        self._chunks: dict[int, int] = {}  # slots by index in these rows; all others grow by one
        self._opening: dict[Row, Side] = {}  # those of them that must be opened first
        self._max_blocks = 0  # the most free blocks that the promised growth can take
        self._reserved: Row | None = None

    def try_grow(self, row: Row | None, side: Side, num_slots: int) -> bool:
        """Grow `row` by `num_slots` positions. Return False, with nothing changed, when there is no room.

        `row=None` opens a row on `side`, for a request that has none. Each such call stands for another request.
        """
        is_new = row is None or row == self._reserved
        if is_new and row is not None:
            return self._grow_reserved(row, num_slots)
        if self._is_sure(num_slots) and (row is not None or len(self._opening) < len(self._pool.closed_rows)):
            self._promise(row, side, num_slots)
            return True
        pool = self._counted()
        grown = Row(pool.open_row(INDEX_OF_SIDE[side])) if row is None else row
        start = int(pool.held[grown])
        has_grown = pool.grow(grown, num_slots)
        if has_grown and row is not None and num_slots == 1:
            self._decodes.append(np.array((row,), np.intp))
        elif has_grown:
            self._note(grown, start, is_new=row is None)
        elif row is None:
            pool.close_rows([grown])
        return has_grown

    def reserve(self, side: Side, lenders: Sequence[Row], num_borrowed: int) -> Row | None:
        """Open a row on `side` that borrows the first `num_borrowed` positions of one of `lenders`.

        Return None where this plan took some of these positions from each lender. `try_grow` must grow the row, or
        `release` close it, before the next one is reserved.
        """
        assert self._reserved is None, f"row {self._reserved} is reserved already"
        pool = self._counted()
        for lender in lenders:
            if pool.can_lend(lender, num_borrowed):
                self._reserved = Row(pool.open_row(INDEX_OF_SIDE[side]))
                pool.borrow(self._reserved, lender, num_borrowed)
                return self._reserved
        return None

    def release(self) -> None:
        """Close the reserved row that did not grow, if there is one."""
        if self._reserved is not None:
            self._counted().close_rows([self._reserved])
            self._reserved = None

    def _grow_reserved(self, row: Row, num_slots: int) -> bool:
        if not self._counted().grow(row, num_slots):
            return False
        self._note(row, 0, is_new=True)
        self._reserved = None
        return True

    def try_grow_each_by_one(self, rows: Sequence[Row] | NDArray[np.int32] | NDArray[np.int64]) -> int:
        """Grow each of `rows` by one slot, in order, until one finds no room. Return how many grew.

        `rows` are distinct.
        """
        decodes = np.ascontiguousarray(rows, np.intp)
        if (num_blocks := self._blocks_for(decodes)) is not None:
            self._promised.append(decodes)
            self._num_promised += len(decodes)
            self._max_blocks += num_blocks
        else:
            decodes = decodes[: self._counted().grow_each_by_one(decodes)]
        self._decodes.append(decodes)
        return len(decodes)

    def max_growth(self, row: Row | None, side: Side, enough: int | None = None) -> int:
        """Return the largest `num_slots` for which `try_grow` would succeed now, or any number of at least `enough`."""
        if enough is not None and self._is_sure(enough):
            return enough
        return self._counted().max_growth(row, INDEX_OF_SIDE[side])

    def shrink(self, row: Row, num_kept: int) -> int:
        """Take positions [num_kept, held) from `row`, but none that others borrow. Return how many it keeps."""
        self.cuts[row] = self._counted().shrink(row, num_kept)
        return self.cuts[row]

    def num_held(self, row: Row) -> int:
        """Return the number of positions of `row` that have a slot, with this budget's growth and cuts."""
        return int(self._counted().held[row])

    def tail_boundaries(self, row: Row) -> list[tuple[int, int]]:
        """Return where `row` can be cut, from its last block backwards: (positions kept, slots a new head gains).

        The gain of a cut is the rise of `max_growth(None, Side.HEAD)`. So it counts no slots beside another head, and
        no room that a new head could enter already. No cut takes positions that others borrow. `row` may be a head,
        too: real-time may preempt real-time. All cached rows are evicted first, on this budget.
        """
        self.evict_all()
        return self._counted().boundaries(row)

    def evict_all(self) -> None:
        """Free all cached positions that no request borrows, on this budget."""
        self._counted().evict(None, HEAD)

    def decodes(self) -> Indices:
        """Return the rows that were open before and grew by one."""
        self._decodes = [_joined(self._decodes)]
        return self._decodes[0]

    def settled_pool(self) -> Pool:
        """Return the pool with all growth and cuts done. Asserts that the manager may adopt it."""
        assert self._reserved is None, f"row {self._reserved} of an adopted budget is reserved"
        rows = np.concatenate((self.decodes(), np.fromiter(self.grown, np.intp, len(self.grown))))
        assert _are_distinct(rows), "a row of an adopted budget grew more than once"
        for row, num_kept in self.cuts.items():
            assert self.grown.get(row, num_kept) == num_kept, f"row {row} of an adopted budget grew before it was cut"
        self._keep_promises()  # on the manager's own pool, where no copy was made
        return self._pool

    def _counted(self) -> Pool:
        """Return the budget's own copy of the pool, with the promised growth done."""
        if self._pool is self._before:
            self._pool = self._before.copy()
        self._keep_promises()
        return self._pool

    def _is_sure(self, num_slots: int) -> bool:
        """Whether the free blocks suffice for `num_slots` more and for all promised growth."""
        pool = self._pool
        return self._max_blocks + ceil_div(num_slots, pool.block_size) <= pool.num_free_blocks

    def _blocks_for(self, decodes: Indices) -> int | None:
        """Return a bound on the free blocks that `decodes` take; None where the promised growth leaves fewer."""
        num_free, most = self._pool.num_free_blocks - self._max_blocks, len(decodes)
        if 2 * most > num_free and not self._has_promised(decodes):  # a promise may fill a block that has room now
            most = self._pool.most_new_blocks(decodes)
        return most if most <= num_free else None

    def _has_promised(self, rows: Indices) -> bool:
        return not set(rows.tolist()).isdisjoint(_joined(self._promised).tolist())

    def _promise(self, row: Row | None, side: Side, num_slots: int) -> None:
        pool = self._pool
        self._max_blocks += ceil_div(num_slots, pool.block_size)
        is_new = row is None
        if row is None:
            row = Row(pool.closed_rows[-1 - len(self._opening)])
            self._opening[row] = side
        grown = np.array((row,), np.intp)
        if num_slots == 1 and not is_new:
            self._decodes.append(grown)
        else:
            self._note(row, 0 if is_new else int(pool.held[row]), is_new)
        self._chunks[self._num_promised] = num_slots
        self._promised.append(grown)
        self._num_promised += 1

    def _note(self, row: Row, start: int, is_new: bool) -> None:
        self.grown.setdefault(row, start)
        if is_new:
            self.opened.append(row)

    def _keep_promises(self) -> None:
        """Do the promised growth, in the order of the calls."""
        if not self._promised:
            return
        for row, side in self._opening.items():
            opened = self._pool.open_row(INDEX_OF_SIDE[side])
            assert opened == row, f"row {row} was promised, not {opened}"
        rows, num_slots = _joined(self._promised), np.empty(self._num_promised, np.int64)
        num_slots.fill(1)  # np.ones takes longer
        for index, num in self._chunks.items():
            num_slots[index] = num
        num_grown = self._pool.grow_each(rows, num_slots)
        assert num_grown == len(rows), f"row {rows[num_grown]}: no room for growth that was promised"
        self._promised.clear()
        self._chunks.clear()
        self._opening.clear()
        self._max_blocks = self._num_promised = 0


def _are_distinct(rows: Indices) -> bool:
    return np.count_nonzero(np.bincount(rows)) == len(rows)  # `max` takes longer


def _joined(parts: Sequence[Indices]) -> Indices:
    return parts[0] if len(parts) == 1 else np.concatenate((_NO_ROWS, *parts))
