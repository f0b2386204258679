"""The pool: rows that hold ends of blocks, without a word about slot tables or the host.

Struct of arrays over rows, besides the blocks' own (kv/block.py). `copy()` is a few memcpys: the budget of a plan is a
copy of the pool on which the plan's growth is tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kv.block import HEAD, SETTLED, TAIL, Blocks, Indices, ceil_div
from kv.types import KVConfig, Layout

_MIN_ROWS = 64


# Positions of a row that lie in one block: (end, start, previous), from position `start` on, until the next run starts
# or the row ends. A row's runs are chained from its end backwards, so that a pool and its copies share them. A plain
# tuple, because a step makes dozens of them.
Run: TypeAlias = tuple[int, int, "Run | None"]


class Pool:
    """Rows and the blocks they hold. Deterministic: the same calls give the same blocks."""

    held: Indices  # positions
    open: Indices  # the end where the row grows; nowhere while it is empty or asleep
    origin: Indices  # slot of position 0, if the last run reached back that far
    first: Indices  # offset in a block of the first position put there
    step: Indices  # +1 or -1: from a position's slot to the next one's
    across: Indices  # from the row's own ends to the opposite ones; 0 in closed rows

    def __init__(self, config: KVConfig) -> None:
        self.blocks = Blocks(config)
        self.closed_rows: list[int] = []
        self._layout = config.layout
        self._runs: list[Run | None] = []
        self._columns = np.zeros((6, 0), np.intp)
        self._bind()

    def _bind(self) -> None:
        self.held, self.open, self.origin, self.first, self.step, self.across = self._columns

    def copy(self) -> Pool:
        """Return an independent pool in the same state."""
        pool = object.__new__(Pool)
        pool.__dict__.update(self.__dict__)
        pool.blocks = self.blocks.copy()
        pool.closed_rows = self.closed_rows.copy()
        pool._runs = self._runs.copy()
        pool._columns = self._columns.copy()
        pool._bind()
        return pool

    # Rows

    def open_row(self, side: int) -> int:
        """Return a row that holds nothing yet."""
        if not self.closed_rows:
            self._add_rows()
        row, blocks = self.closed_rows.pop(), self.blocks
        fills_from_right = side == TAIL and self._layout is not Layout.WHOLE_BLOCK
        self.open[row] = side * blocks.stride + blocks.nowhere
        self.first[row] = blocks.size - 1 if fills_from_right else 0
        self.step[row] = -1 if fills_from_right else 1
        self.across[row] = blocks.stride if side == HEAD else -blocks.stride
        return row

    def close_rows(self, rows: Sequence[int]) -> None:
        """Free what `rows` hold, and the rows themselves."""
        left: list[int] = []
        for row in rows:
            run = self._runs[row]
            while run is not None:
                end, _, run = run
                left.append(end)
            self._runs[row] = None
            self.held[row] = self.across[row] = 0
        if left:
            self.blocks.leave(left)
        self.closed_rows.extend(rows)

    @property
    def num_rows(self) -> int:
        """Rows the columns have, open or not."""
        return len(self._runs)

    def is_open(self, row: int) -> bool:
        """Whether `row` was opened and not closed since."""
        return 0 <= row < self.num_rows and bool(self.across[row])

    def side_of(self, row: int) -> int:
        """Return HEAD or TAIL."""
        return HEAD if self.across[row] > 0 else TAIL

    def last_run(self, row: int) -> Run | None:
        """Return the run at the end of `row`, which leads to the others; None where it holds nothing."""
        return self._runs[row]

    def origin_of(self, row: int, run: Run) -> int:
        """Return, for a run of `row`, the slot that position 0 would have if the run reached back that far."""
        end, start, _ = run
        return end % self.blocks.stride * self.blocks.size + int(self.first[row]) - int(self.step[row]) * start

    def pieces(self, row: int, start: int) -> tuple[list[int], list[int]]:
        """Return, for the runs of `row` with positions at or beyond `start`, from its end backwards: their origins (see
        `origin_of`), and how many such positions each has."""
        origins: list[int] = []
        lengths: list[int] = []
        stride, size, first, step = self.blocks.stride, self.blocks.size, int(self.first[row]), int(self.step[row])
        run, stop = self._runs[row], int(self.held[row])
        while run is not None and stop > start:
            end, run_start, run = run
            origins.append(end % stride * size + first - step * run_start)
            piece_start = max(run_start, start)
            lengths.append(stop - piece_start)
            stop = piece_start
        return origins, lengths

    def _add_rows(self) -> None:
        num_added = max(self.num_rows, _MIN_ROWS)
        self.closed_rows.extend(range(self.num_rows + num_added - 1, self.num_rows - 1, -1))
        self._columns = np.pad(self._columns, ((0, 0), (0, num_added)))
        self._runs.extend([None] * num_added)
        self._bind()

    # Growth

    def grow(self, row: int, num_slots: int) -> bool:
        """Give `row` slots for `num_slots` more positions; return False, with nothing changed, when there is no room.

        First the middle of its own last block, then other blocks in the order of `Blocks.pick`.
        """
        run, blocks = self._runs[row], self.blocks
        num_own = min(num_slots, blocks.room_at(run[0])) if run is not None else 0
        num_rest = num_slots - num_own
        ends = blocks.pick(self.side_of(row), num_rest) if num_rest else None
        if num_rest and ends is None:
            return False
        if run is not None and num_slots:
            blocks.resize(run[0], num_own, grows=num_rest == 0)
            self.open[row] = run[0]
        self.held[row] += num_own
        if ends is not None:
            self._enter(row, ends, num_rest)
        return True

    def grow_each_by_one(self, rows: Indices) -> int:
        """Do `grow(row, 1)` for each of `rows` (distinct) in order until one finds no room; return how many grew.

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
        own, blocks = self.open[rows], self.blocks
        room = blocks.size - blocks.fill[own] - blocks.fill[own + self.across[rows]]
        return int(np.count_nonzero(room <= 1)) <= blocks.num_free

    def max_growth(self, row: int) -> int:
        """Return the largest `num_slots` that `grow(row, num_slots)` can give."""
        run = self._runs[row]
        own_room = self.blocks.room_at(run[0]) if run is not None else 0
        return own_room + self.blocks.newcomer_room(self.side_of(row))

    # Giving up

    def shrink(self, row: int, num_kept: int) -> None:
        """Take positions [num_kept, held) from `row`, which then sleeps: it is settled until it grows again."""
        num_held, run, blocks = int(self.held[row]), self._runs[row], self.blocks
        assert 0 <= num_kept <= num_held, f"row {row}: cannot keep {num_kept} of {num_held} positions"
        if num_kept == num_held:
            return
        left: list[int] = []
        stop = num_held
        while run is not None and run[1] >= num_kept:
            end, stop, run = run
            left.append(end)
        if left:
            blocks.leave(left)
        if run is not None:
            blocks.resize(run[0], num_kept - stop, grows=False)
            self.origin[row] = self.origin_of(row, run)
        self._runs[row] = run
        self.held[row] = num_kept
        self.open[row] = self.side_of(row) * blocks.stride + blocks.nowhere

    def boundaries(self, row: int) -> list[tuple[int, int]]:
        """From the end of `row` backwards, run by run: (positions kept without it, slots a new head gains so far)."""
        found: list[tuple[int, int]] = []
        run, num_gained = self._runs[row], 0
        while run is not None:
            end, start, run = run
            num_gained += self.blocks.head_gain(end)
            found.append((start, num_gained))
        return found

    # One row moves on

    def _enter(self, row: int, ends: Indices, num_slots: int) -> None:
        """Put `num_slots` positions at the end of `row` into `ends`, in order; all but the last are filled up."""
        blocks, start = self.blocks, int(self.held[row])
        starts: Iterable[int]
        if ceil_div(num_slots, blocks.size) <= blocks.num_free:  # then all ends are those of free blocks
            blocks.enter_free(self.side_of(row), ends, num_slots)
            starts = range(start, start + num_slots, blocks.size)
        else:
            opposite = ends + self.across[row]
            counts = (blocks.size - blocks.fill[opposite]).astype(np.intp)
            stops = np.cumsum(counts)
            starts = (start + stops - counts).tolist()
            counts[-1] += num_slots - stops[-1]
            blocks.enter(ends, opposite, counts)
            blocks.settle(ends[:-1])
        run = self._runs[row]
        for end, run_start in zip(ends.tolist(), starts, strict=True):
            run = (end, run_start, run)
        assert run is not None, f"row {row}: no end to enter"
        self._runs[row] = run
        self.open[row] = run[0]
        self.origin[row] = self.origin_of(row, run)
        self.held[row] += num_slots

    # All rows move on

    def _advance(self, rows: Indices) -> int:
        """Grow a prefix of `rows` by one each, as long as it matters to none of them what the others do meanwhile."""
        own, across, blocks = self.open[rows], self.across[rows], self.blocks
        assert np.count_nonzero(across) == len(rows), f"not open: {rows[across == 0].tolist()}"
        other = own + across
        fill = blocks.fill[own] + 1
        opposite_fill = blocks.fill[other]
        room = blocks.size - fill - opposite_fill  # after growth
        movers = _movers(room, own, other, opposite_fill)
        if len(movers):
            fill[movers] -= 1
            num_rows = self._move(rows, movers)
            rows, own, other, fill = rows[:num_rows], own[:num_rows], other[:num_rows], fill[:num_rows]
        blocks.extend(own, other, fill)
        self.held[rows] += 1
        return len(rows)

    def _move(self, rows: Indices, movers: Indices) -> int:
        """Enter another block with each of rows[movers]; return the end of the prefix of `rows` for which that was
        possible. `held` is left to the caller."""
        blocks, moved = self.blocks, rows[movers]
        own, across, starts = self.open[moved], self.across[moved], self.held[moved]
        ends = self._targets(own, across < 0, starts)
        num_rows, num_moved = len(rows), len(ends)
        if num_moved < len(movers):
            num_rows = int(movers[num_moved])
            moved, own, across, starts = moved[:num_moved], own[:num_moved], across[:num_moved], starts[:num_moved]
        blocks.settle(own)
        blocks.enter(ends, ends + across, 1)
        self.open[moved] = ends
        self.origin[moved] = ends % blocks.stride * blocks.size + self.first[moved] - self.step[moved] * starts
        runs = self._runs
        for row, end, start in zip(moved.tolist(), ends.tolist(), starts.tolist(), strict=True):
            runs[row] = (end, start, runs[row])
        return num_rows

    def _targets(self, own: Indices, is_tail: NDArray[np.bool_], held: Indices) -> Indices:
        """Return the end to move to from each of `own` in order, up to the first row that must be handled alone: it
        sleeps, or only a block is left whose holder may grow in the same call."""
        is_nowhere = own % self.blocks.stride == self.blocks.nowhere
        if np.count_nonzero(is_nowhere) and (sleeps := is_nowhere & (held > 0)).any():
            is_tail = is_tail[: int(sleeps.argmax())]
        num_free = min(len(is_tail), self.blocks.num_free)
        ends = self._free_targets(is_tail[:num_free])
        if num_free == len(is_tail):
            return ends
        return np.concatenate((ends, self._settled_targets(is_tail[num_free:])))

    def _free_targets(self, is_tail: NDArray[np.bool_]) -> Indices:
        """Return an end of a free block for each mover; there are enough."""
        num_tails = int(np.count_nonzero(is_tail))
        heads = self.blocks.free_ends(HEAD, len(is_tail) - num_tails)
        if not num_tails:
            return heads
        ends = np.empty(len(is_tail), np.intp)
        ends[~is_tail] = heads
        ends[is_tail] = self.blocks.free_ends(TAIL, num_tails)
        return ends

    def _settled_targets(self, is_tail: NDArray[np.bool_]) -> Indices:
        """Return an end of a block with a settled holder for each mover, up to the first that finds none."""
        ends = np.empty(len(is_tail), np.intp)
        num_ends = len(ends)
        for side, movers in ((HEAD, (~is_tail).nonzero()[0]), (TAIL, is_tail.nonzero()[0])):
            found = self.blocks.shared_ends(side, min_rank=SETTLED)[: len(movers)]
            ends[movers[: len(found)]] = found
            if len(found) < len(movers):
                num_ends = min(num_ends, int(movers[len(found)]))
        return ends[:num_ends]


def _movers(room: NDArray[np.int16], own: Indices, other: Indices, opposite_fill: NDArray[np.int16]) -> Indices:
    """Return the indices of rows that need another block: full ones, and those whose last slot goes to a row before."""
    tight = (room <= 0).nonzero()[0]
    if not np.count_nonzero(opposite_fill[tight]):  # nobody shares with any of them
        return np.asarray(tight[room[tight] < 0])
    takers: set[int] = set()
    movers: list[int] = []
    ends = zip(tight.tolist(), room[tight].tolist(), own[tight].tolist(), other[tight].tolist(), strict=True)
    for index, room_left, own_end, other_end in ends:
        if room_left < 0 or other_end in takers:
            movers.append(index)
        else:
            takers.add(own_end)
    return np.array(movers, np.intp)
