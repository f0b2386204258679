"""One block: two ends, two fronts, and what a newcomer finds between them.

    slot    0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15
            H0  H1  H2  H3  H4 ──►  ·   ·   ·   ·   ·   ·  ◄── T2  T1  T0
            head: fill 5            room for either: 8          tail: fill 3

At most one holder fills from each end. Columns index sides by `HEAD` and `TAIL`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kv.types import MAX_BLOCK_SIZE, Layout, Side

HEAD, TAIL = 0, 1
INDEX_OF_SIDE = {Side.HEAD: HEAD, Side.TAIL: TAIL}

# A newcomer prefers a block whose other holder does not grow there: such rooms rank above all others.
SETTLED = 2 * MAX_BLOCK_SIZE
ROOM_MASK = SETTLED - 1


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def shared_room_table(layout: Layout, block_size: int) -> NDArray[np.int16]:
    """Return int16 [2, block_size + 1]: the rank of the room that a newcomer finds beside one other holder.

    Indexed by (whether the other holder grows there, the slots it fills). `rank & ROOM_MASK` is the room in slots.
    Empty blocks rank 0 here: they are free, not shared. Only the layout TWO_ENDED shares at all.
    """
    rank = np.zeros((2, block_size + 1), np.int16)
    if layout is Layout.TWO_ENDED:
        rank[:, 1:block_size] = block_size - np.arange(1, block_size)
        rank[0, 1:block_size] += SETTLED
    return rank


def first_offset(layout: Layout, block_size: int, side: int) -> int:
    """Return the offset in a block where a holder of `side` puts its first position."""
    return block_size - 1 if step(layout, side) < 0 else 0


def step(layout: Layout, side: int) -> int:
    """Return +1 where a holder of `side` fills a block from left to right, -1 from right to left."""
    return -1 if side == TAIL and layout is not Layout.WHOLE_BLOCK else 1
