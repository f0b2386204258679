"""Blocks: two ends each, two fronts that grow towards each other, and what a newcomer finds between them.

    slot    0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15
            H0  H1  H2  H3  H4 ──►  ·   ·   ·   ·   ·   ·  ◄── T2  T1  T0
            head: fill 5            room for either: 8          tail: fill 3

At most one holder fills from each end. A holder *grows* in a block until it leaves it or falls asleep; then it is
*settled* there. All columns are indexed by end: `side * stride + block`, so `opposite` of an end is half a turn away.
The last block of the stride is `nowhere`: always full, it stands for no block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kv.types import MAX_BLOCK_SIZE, KVConfig, Layout, Side

Indices = NDArray[np.intp]

HEAD, TAIL = 0, 1
INDEX_OF_SIDE = {Side.HEAD: HEAD, Side.TAIL: TAIL}

# The rank of a room is its slots, plus SETTLED beside a settled holder: a newcomer prefers that to any other.
SETTLED = 2 * MAX_BLOCK_SIZE
ROOM_MASK = SETTLED - 1

_FIRST_LOOK = 1_024  # blocks that are searched for free ones at first


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


class Blocks:
    """Struct of arrays over the ends of all blocks, with counts kept in step. Knows no rows."""

    fill: NDArray[np.int16]  # slots that the end's holder has
    is_free: tuple[NDArray[np.bool_], NDArray[np.bool_]]  # by block, in the order in which heads and tails take them
    shared_room: NDArray[np.int16]  # rank of the room that a newcomer at this end finds beside the opposite holder

    def __init__(self, config: KVConfig) -> None:
        self.size = config.block_size
        self.nowhere = config.num_blocks
        self.stride = config.num_blocks + 1
        self.num_free = config.num_blocks
        self.num_held = [0, 0]  # by heads, by tails
        self.first_free = [0, 0]  # none is free before that many, from the low end of the pool and from its high end
        self.rank_beside = _rank_beside(config)
        self.grows = np.zeros(2 * self.stride, np.bool_)  # whether the end's holder grows here
        self._columns = np.zeros((4, self.stride), np.int16)
        self._is_free = np.ones(config.num_blocks, np.bool_)
        self._bind()
        self.fill[self.nowhere] = self.size

    def _bind(self) -> None:
        self.fill = self._columns[:2].reshape(-1)
        self.shared_room = self._columns[2:].reshape(-1)
        self.is_free = self._is_free, self._is_free[::-1]

    def copy(self) -> Blocks:
        """Return independent blocks in the same state."""
        blocks = object.__new__(Blocks)
        blocks.__dict__.update(self.__dict__)
        blocks.num_held = self.num_held.copy()
        blocks.first_free = self.first_free.copy()
        blocks.grows = self.grows.copy()
        blocks._columns = self._columns.copy()
        blocks._is_free = self._is_free.copy()
        blocks._bind()
        return blocks

    # Questions

    def room_at(self, end: int) -> int:
        """Return the free slots in the middle of the block that `end` belongs to."""
        return self.size - int(self.fill[end]) - int(self.fill[self.opposite(end)])

    def newcomer_room(self, side: int) -> int:
        """Return the slots that a new holder on `side` could take in all."""
        return self.num_free * self.size + int((self._columns[2 + side] & ROOM_MASK).sum(dtype=np.intp))

    def head_gain(self, end: int) -> int:
        """Return the slots by which `newcomer_room(HEAD)` grows when the holder of `end` leaves it."""
        block = end % self.stride
        if end != block:  # a tail: what a new head could have entered anyway is no gain, nor is a room beside a head
            return 0 if self.fill[block] else self.size - (int(self.shared_room[block]) & ROOM_MASK)
        tail_fill = int(self.fill[self.opposite(end)])
        return int(self.rank_beside[0, tail_fill]) & ROOM_MASK if tail_fill else self.size

    def opposite(self, end: int) -> int:
        """Return the other end of the same block."""
        return end + self.stride if end < self.stride else end - self.stride

    # Choices: each has a total order

    def pick(self, side: int, num_slots: int) -> Indices | None:
        """Return ends that a holder on `side` enters, best first, to place `num_slots`; None when all are not enough.

        Order: free blocks, blocks with a settled holder (most room first), blocks with a growing one (likewise).
        """
        num_blocks = ceil_div(num_slots, self.size)
        free = self.free_ends(side, num_blocks)
        if len(free) == num_blocks:
            return free
        num_missing = num_slots - len(free) * self.size
        shared = self.shared_ends(side, min_rank=1)
        room = np.cumsum(self.shared_room[shared] & ROOM_MASK, dtype=np.intp)
        num_shared = int(np.searchsorted(room, num_missing)) + 1
        return None if num_shared > len(shared) else np.concatenate((free, shared[:num_shared]))

    def free_ends(self, side: int, max_ends: int) -> Indices:
        """Return up to `max_ends` ends of free blocks: for heads the lowest numbers, for tails the highest."""
        if not max_ends or not self.num_free:
            return np.empty(0, np.intp)
        is_free, start = self.is_free[side], self.first_free[side]
        stop = start + _FIRST_LOOK
        found: Indices = is_free[start:stop].nonzero()[0]
        while len(found) < max_ends and stop < self.nowhere:  # seldom is a look at all blocks needed
            stop += 3 * (stop - start)
            found = is_free[start:stop].nonzero()[0]
        found = found[:max_ends] + start
        self.first_free[side] = int(found[0])
        return found if side == HEAD else self.stride + self.nowhere - 1 - found

    def shared_ends(self, side: int, min_rank: int) -> Indices:
        """Return the ends on `side` of blocks to share, by descending rank, then ascending number."""
        rank = self._columns[2 + side]
        blocks: Indices = (rank >= min_rank).nonzero()[0]
        order = np.argsort(-rank[blocks], kind="stable")
        return blocks[order] + side * self.stride

    # Changes: each keeps every column and count in step

    def enter_free(self, side: int, ends: Indices, num_slots: int) -> None:
        """Give ends of free blocks to one holder on `side`, which fills them up in order and grows in the last."""
        last = int(ends[-1])
        num_in_last = num_slots - (len(ends) - 1) * self.size
        self.num_held[side] += len(ends)
        self.num_free -= len(ends)
        self._is_free[ends - side * self.stride] = False
        self.fill[ends] = self.size
        self.fill[last] = num_in_last
        self.grows[last] = True
        self.shared_room[self.opposite(last)] = self.rank_beside[1, num_in_last]

    def enter(self, ends: Indices, opposite: Indices, num_slots: Indices | int) -> None:
        """Give ends, so far without a holder, to holders that fill `num_slots` of each and grow there."""
        is_free = self.fill[opposite] == 0
        self._is_free[np.minimum(ends, opposite)] = False
        num_heads = int(np.count_nonzero(ends < self.stride))
        self.num_held[HEAD] += num_heads
        self.num_held[TAIL] += len(ends) - num_heads
        self.num_free -= int(np.count_nonzero(is_free))
        self.fill[ends] = num_slots
        self.grows[ends] = True
        self.shared_room[ends] = 0
        self.shared_room[opposite] = is_free * self.rank_beside[1, num_slots]

    def settle(self, ends: Indices) -> None:
        """Note that the holders of full ends grow there no longer."""
        self.grows[ends] = False

    def resize(self, end: int, num_slots: int, grows: bool) -> None:
        """Add `num_slots` (or take, where negative) to a holder's end, which it keeps."""
        opposite = self.opposite(end)
        self.fill[end] += num_slots
        self.grows[end] = grows
        self.shared_room[opposite] = self.rank_beside[int(grows), self.fill[end]] if not self.fill[opposite] else 0

    def extend(self, ends: Indices, opposite: Indices, fill: NDArray[np.int16]) -> None:
        """Set the fill of ends: one more than it was in a block with room, unchanged in a full one."""
        self.fill[ends] = fill
        self.shared_room[opposite] = np.maximum(self.shared_room[opposite] - 1, 0)

    def leave(self, ends: list[int]) -> None:
        """Take ends from their holders."""
        left = np.array(ends, np.intp)
        left_blocks = left % self.stride
        opposite = (left + self.stride) % (2 * self.stride)
        num_tails = int(np.count_nonzero(left >= self.stride))
        self.num_held[HEAD] -= len(ends) - num_tails
        self.num_held[TAIL] -= num_tails
        self.fill[left] = 0
        self.grows[left] = False
        beside = self.fill[opposite]  # after both ends of a block have been left, where they are
        self._is_free[left_blocks] = beside == 0
        self.num_free = int(np.count_nonzero(self._is_free))
        self.shared_room[opposite] = 0
        if np.count_nonzero(beside):
            self.shared_room[left] = self.rank_beside[self.grows[opposite].astype(np.intp), beside]
        self.first_free[HEAD] = min(self.first_free[HEAD], int(left_blocks.min()))
        self.first_free[TAIL] = min(self.first_free[TAIL], self.nowhere - 1 - int(left_blocks.max()))


def _rank_beside(config: KVConfig) -> NDArray[np.int16]:
    """Return int16 [2, block_size + 1]: the rank of the room that a newcomer finds beside one other holder.

    Indexed by (whether that holder grows there, the slots it fills). Beside none it is 0: the block is free, then,
    not shared. Only the layout TWO_ENDED shares at all; this table is all that makes it differ from UNSHARED.
    """
    size = config.block_size
    rank = np.zeros((2, size + 1), np.int16)
    if config.layout is Layout.TWO_ENDED:
        rank[:, 1:size] = size - np.arange(1, size)
        rank[0, 1:size] += SETTLED
    return rank
