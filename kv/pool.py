"""The pool: which row fills how many slots of which block, without a word about slot tables or the host.

Struct of arrays. `fill`, `shared_room` and `grows` hold one entry per (side, block) in one flat index, `side * stride +
block`, so that a row finds its own end of its block at `open[row]` and the opposite end at `open[row] + across[row]`.
The last block of the stride is `nowhere`: always full, so that a row without an open block needs no special case.

`copy()` is cheap (a few memcpys): the budget of a plan is a copy of the pool on which the plan's growth is tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kv.block import HEAD, ROOM_MASK, SETTLED, TAIL, ceil_div, first_offset, shared_room_table, step
from kv.types import KVConfig

Indices = NDArray[np.intp]

_MIN_ROWS = 64


@dataclass(slots=True, eq=False)  # not frozen only because that doubles the cost of making one
class Run:
    """Positions of a row that lie in one block: from `start` on, until the next run starts or the row ends.

    Runs of a row are chained from its end backwards, never changed, and so shared between a pool and its copies.
    """

    block: int
    start: int
    previous: Run | None


class Pool:
    """Blocks and rows; see the module's docstring. Deterministic: every choice has a total order."""

    fill: NDArray[np.int16]
    shared_room: NDArray[np.int16]
    held: Indices  # positions
    open: Indices  # the end of a block where the row grows; nowhere while it is empty or asleep
    origin: Indices  # slot of position 0, if the last run reached back that far
    written: Indices  # leading positions that were computed before this step
    first: Indices  # offset in a block of the first position put there
    step: Indices  # +1 or -1: from a position's slot to the next one's
    across: Indices  # from the row's own end of a block to the opposite one; 0 in closed rows

    def __init__(self, config: KVConfig) -> None:
        self.config = config
        self.num_free_blocks = config.num_blocks
        self.num_runs = [0, 0]  # blocks held by heads, by tails
        self.first_free = [0, 0]  # blocks from the low end of the pool, from its high end, before which none is free
        self.stride = config.num_blocks + 1
        self.nowhere = config.num_blocks
        self.rank_beside = shared_room_table(config.layout, config.block_size)
        self._blocks = np.zeros((4, self.stride), np.int16)  # fill of heads, of tails; shared room for heads, for tails
        self.grows = np.zeros(2 * self.stride, np.bool_)
        self._rows = np.zeros((7, 0), np.intp)
        self._runs: list[Run | None] = []
        self.closed_rows: list[int] = []
        self._bind()
        self.fill[self.nowhere] = config.block_size

    def _bind(self) -> None:
        """Name the columns; called whenever an array is replaced."""
        self.fill = self._blocks[:2].reshape(-1)
        self.shared_room = self._blocks[2:].reshape(-1)
        self.held, self.open, self.origin, self.written, self.first, self.step, self.across = self._rows

    def copy(self) -> Pool:
        """Return an independent pool in the same state."""
        pool = object.__new__(Pool)
        pool.__dict__.update(self.__dict__)
        pool.num_runs = self.num_runs.copy()
        pool.first_free = self.first_free.copy()
        pool._blocks = self._blocks.copy()
        pool.grows = self.grows.copy()
        pool._rows = self._rows.copy()
        pool._runs = self._runs.copy()
        pool.closed_rows = self.closed_rows.copy()
        pool._bind()
        return pool

    # Rows

    def open_row(self, side: int) -> int:
        """Return a row that holds nothing yet."""
        if not self.closed_rows:
            self._add_rows()
        row = self.closed_rows.pop()
        self.open[row] = side * self.stride + self.nowhere
        self.first[row] = first_offset(self.config.layout, self.config.block_size, side)
        self.step[row] = step(self.config.layout, side)
        self.across[row] = self.stride if side == HEAD else -self.stride
        return row

    def close_row(self, row: int) -> None:
        """Free what `row` holds, and the row itself."""
        self.shrink(row, 0)
        self.across[row] = 0
        self.closed_rows.append(row)

    def is_open(self, row: int) -> bool:
        """Whether `row` was opened and not closed since."""
        return 0 <= row < self.num_rows and bool(self.across[row])

    def side_of(self, row: int) -> int:
        """Return HEAD or TAIL."""
        return HEAD if self.across[row] > 0 else TAIL

    @property
    def num_rows(self) -> int:
        """Rows the columns have, open or not."""
        return self._rows.shape[1]

    def last_run(self, row: int) -> Run | None:
        """Return the run at the end of `row`, which leads to the others; None where it holds nothing."""
        return self._runs[row]

    def origins(self, row: int, blocks: Indices, starts: Indices) -> Indices:
        """Return, for runs of `row`, the slot that position 0 would have if the run reached back that far."""
        return blocks * self.config.block_size + int(self.first[row]) - int(self.step[row]) * starts

    def mark_written(self) -> None:
        """Take all positions held now as computed."""
        self.written[:] = self.held

    def _add_rows(self) -> None:
        num_rows = self.num_rows
        num_added = max(num_rows, _MIN_ROWS)
        self._rows = np.concatenate((self._rows, np.zeros((len(self._rows), num_added), np.intp)), axis=1)
        self._runs = self._runs + [None] * num_added
        self.closed_rows.extend(range(num_rows + num_added - 1, num_rows - 1, -1))
        self._bind()

    # Growth

    def grow(self, row: int, num_slots: int) -> bool:
        """Give `row` slots for `num_slots` more positions; return False, with nothing changed, when there is no room.

        Order: the middle of its last block, free blocks, blocks shared with a settled holder, other shared blocks.
        """
        side, run = self.side_of(row), self._runs[row]
        num_own = min(num_slots, self._own_room(row))
        num_rest = num_slots - num_own
        blocks = self._pick(side, num_rest) if num_rest else None
        if num_rest and blocks is None:
            return False
        if run is not None and num_slots:
            self._fill_end(side * self.stride + run.block, num_own, grows=num_rest == 0)
            self.open[row] = side * self.stride + run.block
        self.held[row] += num_own
        if blocks is not None:
            self._enter(row, blocks, num_rest)
        return True

    def grow_each_by_one(self, rows: Indices) -> int:
        """Do `grow(row, 1)` for each of `rows` in order until one finds no room; return how many grew.

        Vectorised; a row is handled alone only if it must move in with a holder that may itself grow in this call.
        """
        num_grown = 0
        while True:
            num_grown += self._advance(rows[num_grown:])
            if num_grown == len(rows) or not self.grow(int(rows[num_grown]), 1):
                return num_grown
            num_grown += 1

    def has_free_blocks_for(self, rows: Indices) -> bool:
        """Whether `grow_each_by_one(rows)` is sure to succeed, since free blocks suffice for all that may need one."""
        own = self.open[rows]
        room = self.config.block_size - self.fill[own] - self.fill[own + self.across[rows]]
        return int(np.count_nonzero(room <= 1)) <= self.num_free_blocks

    def max_growth(self, row: int) -> int:
        """Return the largest `num_slots` that `grow(row, num_slots)` can give."""
        return self._own_room(row) + self.newcomer_room(self.side_of(row))

    def newcomer_room(self, side: int) -> int:
        """Return the slots that a new row of `side` could take."""
        num_shared = int((self._blocks[2 + side] & ROOM_MASK).sum(dtype=np.intp))
        return self.num_free_blocks * self.config.block_size + num_shared

    # Giving up

    def shrink(self, row: int, num_kept: int) -> None:
        """Take positions [num_kept, held) from `row`, whose last block then counts as settled until it grows again."""
        num_held, run = int(self.held[row]), self._runs[row]
        assert 0 <= num_kept <= num_held, f"row {row}: cannot keep {num_kept} of {num_held} positions"
        if num_kept == num_held:
            return
        base = self.side_of(row) * self.stride
        ends: list[int] = []
        end = num_held
        while run is not None and run.start >= num_kept:
            ends.append(base + run.block)
            end, run = run.start, run.previous
        if ends:
            self._vacate(row, np.array(ends, np.intp))
        if run is not None:
            self._fill_end(base + run.block, num_kept - end, grows=False)
            self.origin[row] = self._origin(row, run.block, run.start)
        self._runs[row] = run
        self.held[row] = num_kept
        self.open[row] = base + self.nowhere
        self.written[row] = min(int(self.written[row]), num_kept)

    def boundaries(self, row: int) -> list[tuple[int, int]]:
        """From the end of `row` backwards, run by run: (positions kept without it, slots that a new head gains so far).

        The middle of a block that a new head could take anyway is no gain; nor is a block with another head.
        """
        found: list[tuple[int, int]] = []
        side, num_gained = self.side_of(row), 0
        run = self._runs[row]
        while run is not None:
            num_gained += self._gain(side, run.block)
            found.append((run.start, num_gained))
            run = run.previous
        return found

    def _gain(self, side: int, block: int) -> int:
        """Return the slots a new head gains when the holder on `side` leaves `block`."""
        if side == HEAD:
            tail_fill = int(self.fill[self.stride + block])
            return int(self.rank_beside[0, tail_fill]) & ROOM_MASK if tail_fill else self.config.block_size
        if self.fill[block]:
            return 0
        return self.config.block_size - (int(self.shared_room[block]) & ROOM_MASK)

    # The leaves: each keeps fill, grows, shared_room and the counts in step

    def _origin(self, row: int, block: int, start: int) -> int:
        """`origins` for one run."""
        return block * self.config.block_size + int(self.first[row]) - int(self.step[row]) * start

    def _own_room(self, row: int) -> int:
        run = self._runs[row]
        if run is None:
            return 0
        return self.config.block_size - int(self.fill[run.block]) - int(self.fill[self.stride + run.block])

    def _refresh(self, ends: Indices) -> None:
        """Recompute what newcomers find in the blocks of `ends`, from either end."""
        blocks = ends % self.stride
        for own in (blocks, blocks + self.stride):
            other = 2 * blocks + self.stride - own
            rank = self.rank_beside[self.grows[other].astype(np.intp), self.fill[other]]
            self.shared_room[own] = np.where(self.fill[own] == 0, rank, 0)

    def _fill_end(self, end: int, num_slots: int, grows: bool) -> None:
        """Add `num_slots` (or take, where negative) to a holder's end of a block, which it keeps."""
        other = end + self.stride if end < self.stride else end - self.stride
        self.fill[end] += num_slots
        self.grows[end] = grows
        self.shared_room[other] = self.rank_beside[int(grows), self.fill[end]] if not self.fill[other] else 0

    def _enter(self, row: int, blocks: Indices, num_slots: int) -> None:
        """Put `num_slots` positions at the end of `row` into `blocks`, in order; all but the last are filled up."""
        side, start = self.side_of(row), int(self.held[row])
        ends = blocks + side * self.stride
        counts = self.config.block_size - self.fill[ends + self.across[row]]
        starts = start + np.cumsum(counts) - counts
        counts[-1] = start + num_slots - starts[-1]
        self.num_free_blocks -= int(np.count_nonzero(self.fill[ends + self.across[row]] == 0))
        self.num_runs[side] += len(blocks)
        self.fill[ends] = counts
        self.grows[ends[-1]] = True
        self._refresh(ends)
        run = self._runs[row]
        for block, run_start in zip(blocks.tolist(), starts.tolist(), strict=True):
            run = Run(block, run_start, run)
        self._runs[row] = run
        self.open[row] = ends[-1]
        self.origin[row] = self._origin(row, int(blocks[-1]), int(starts[-1]))
        self.held[row] += num_slots

    def _vacate(self, row: int, ends: Indices) -> None:
        """Empty a holder's whole ends of blocks."""
        self.fill[ends] = 0
        self.grows[ends] = False
        self.num_free_blocks += int(np.count_nonzero(self.fill[ends + self.across[row]] == 0))
        self.num_runs[self.side_of(row)] -= len(ends)
        self._refresh(ends)
        blocks = ends % self.stride
        self.first_free[HEAD] = min(self.first_free[HEAD], int(blocks.min()))
        self.first_free[TAIL] = min(self.first_free[TAIL], self.nowhere - 1 - int(blocks.max()))

    # Choosing blocks

    def _pick(self, side: int, num_slots: int) -> Indices | None:
        """Return the blocks a row of `side` enters, best first, to place `num_slots`; None when all are not enough."""
        num_blocks = ceil_div(num_slots, self.config.block_size)
        free = self._free_blocks(side, num_blocks)
        if len(free) == num_blocks:
            return free
        num_missing = num_slots - len(free) * self.config.block_size
        shared = self._shared_blocks(side, 1)
        room = np.cumsum(self.shared_room[shared + side * self.stride] & ROOM_MASK, dtype=np.intp)
        num_shared = int(np.searchsorted(room, num_missing)) + 1
        return None if num_shared > len(shared) else np.concatenate((free, shared[:num_shared]))

    def _free_blocks(self, side: int, max_blocks: int) -> Indices:
        """Return up to `max_blocks` free blocks: heads take the lowest numbers, tails the highest."""
        if not max_blocks or not self.num_free_blocks:
            return np.empty(0, np.intp)
        heads, tails = self._blocks[:2, : self.nowhere]
        if side == TAIL:
            heads, tails = heads[::-1], tails[::-1]
        start = self.first_free[side]
        for end in (start + 64 + 8 * max_blocks, self.nowhere):  # seldom is a look at all blocks needed
            found: Indices = (heads[start:end] | tails[start:end] == 0).nonzero()[0]
            if len(found) >= max_blocks:
                break
        found = found[:max_blocks] + start
        self.first_free[side] = int(found[0])
        return found if side == HEAD else self.nowhere - 1 - found

    def _shared_blocks(self, side: int, min_rank: int) -> Indices:
        """Return the blocks a row of `side` may share, by descending rank, then ascending number."""
        rank = self._blocks[2 + side]
        blocks = np.flatnonzero(rank >= min_rank)
        return blocks[np.argsort(-rank[blocks], kind="stable")]

    # The decode path

    def _advance(self, rows: Indices) -> int:
        """Grow a prefix of `rows` by one each, as long as it matters to none of them what the others do meanwhile."""
        own, across = self.open[rows], self.across[rows]
        assert np.count_nonzero(across) == len(rows), f"not open: {rows[across == 0].tolist()}"
        other = own + across
        fill = self.fill[own] + 1
        room = self.config.block_size - fill - self.fill[other]  # after growth
        movers = _movers(room, own, other)
        if movers:
            fill[movers] -= 1
            num_rows = self._move(rows, movers)
            rows, own, other, fill = rows[:num_rows], own[:num_rows], other[:num_rows], fill[:num_rows]
        self.fill[own] = fill
        self.shared_room[other] = np.maximum(self.shared_room[other] - 1, 0)  # 0 anyway where a mover leaves
        self.held[rows] += 1
        return len(rows)

    def _move(self, rows: Indices, movers: list[int]) -> int:
        """Open a block for each of rows[movers] and fill its first slot; return the end of the prefix of `rows` for
        which that is settled. `held` is left to the caller."""
        moved = rows[movers]
        ends = self._targets(moved)
        num_rows = movers[len(ends)] if len(ends) < len(movers) else len(rows)
        moved = moved[: len(ends)]
        other = ends + self.across[moved]
        is_free = self.fill[other] == 0
        num_heads = int(np.count_nonzero(ends < self.stride))
        self.num_free_blocks -= int(np.count_nonzero(is_free))
        self.num_runs[HEAD] += num_heads
        self.num_runs[TAIL] += len(ends) - num_heads
        self.fill[ends] = 1
        self.shared_room[ends] = 0
        self.shared_room[other] = is_free * self.rank_beside[1, 1]
        self.grows[self.open[moved]] = False
        self.grows[ends] = True
        self.open[moved] = ends
        blocks, starts = ends % self.stride, self.held[moved]
        self.origin[moved] = blocks * self.config.block_size + self.first[moved] - self.step[moved] * starts
        runs = self._runs
        for row, block, start in zip(moved.tolist(), blocks.tolist(), starts.tolist(), strict=True):
            runs[row] = Run(block, start, runs[row])
        return num_rows

    def _targets(self, rows: Indices) -> Indices:
        """Return the end of a block to move to for each of `rows` in order, up to the first one that must be handled
        alone: because it sleeps, or because only a block is left whose holder may grow in the same call."""
        sleeps = (self.held[rows] > 0) & (self.open[rows] % self.stride == self.nowhere)
        if np.count_nonzero(sleeps):
            rows = rows[: int(sleeps.argmax())]
        is_tail = self.across[rows] < 0
        num_free = min(len(rows), self.num_free_blocks)
        ends = self._free_ends(is_tail[:num_free])
        return ends if num_free == len(rows) else np.concatenate((ends, self._settled_ends(is_tail[num_free:])))

    def _free_ends(self, is_tail: NDArray[np.bool_]) -> Indices:
        """Return an end of a free block for each mover; there are enough."""
        num_tails = int(np.count_nonzero(is_tail))
        ends = np.empty(len(is_tail), np.intp)
        ends[~is_tail] = self._free_blocks(HEAD, len(is_tail) - num_tails)
        ends[is_tail] = self._free_blocks(TAIL, num_tails) + self.stride
        return ends

    def _settled_ends(self, is_tail: NDArray[np.bool_]) -> Indices:
        """Return an end of a block with a settled holder for each mover, up to the first that finds none."""
        ends = np.empty(len(is_tail), np.intp)
        num_ends = len(ends)
        for side, movers in ((HEAD, np.flatnonzero(~is_tail)), (TAIL, np.flatnonzero(is_tail))):
            blocks = self._shared_blocks(side, SETTLED)[: len(movers)]
            ends[movers[: len(blocks)]] = blocks + side * self.stride
            if len(blocks) < len(movers):
                num_ends = min(num_ends, int(movers[len(blocks)]))
        return ends[:num_ends]


def _movers(room: NDArray[np.int16], own: Indices, other: Indices) -> list[int]:
    """Return the indices of rows that need another block: full ones, and those whose last slot goes to a row before."""
    tight = (room <= 0).nonzero()[0]
    takers: set[int] = set()
    movers: list[int] = []
    ends = zip(tight.tolist(), room[tight].tolist(), own[tight].tolist(), other[tight].tolist(), strict=True)
    for index, room_left, own_end, other_end in ends:
        if room_left < 0 or other_end in takers:
            movers.append(index)
        else:
            takers.add(own_end)
    return movers
