"""Blocks: each has two ends, which fill towards each other, and room for one more row between them.

    slot    0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15
            H0  H1  H2  H3  H4 ──►  ·   ·   ·   ·   ·   ·  ◄── T2  T1  T0
            head: fill 5            room for either: 8          tail: fill 3

At most one row fills a block from each end. A row *grows* in its last block. It is *settled* there once it has been
cut or cached, until it grows again. It is settled in all its earlier blocks.

An end is an index: `side * num_blocks + block`. The opposite end of the same block is `num_blocks` away. The ends that
a row holds form a chain from its last end backwards.

These are the compiled loops (kv/compiled.py) behind kv/pool.py. They work on the pool's arrays:

    rows      int64 [9, rows]          HELD: positions; LAST: its last end, or NONE; SIDE: NONE where the row is not
                                       open; BASE, PARENT, PIN, USE, IS_CACHED: see below; WRITTEN: leading positions
                                       that were computed before this step
    ends      int16 [3, 2 * blocks]    FILL: slots that the row here has; GROWS: whether it grows here; ROOM: rank of
                                       the room that a new row at this end finds beside the row at the opposite end
    previous  int32 [2 * blocks]       the end that the same row holds before this one, or NONE
    numbers   int64 [12]               counts and the layout, see below

Rows form a tree. A row *borrows* its first BASE positions from its PARENT and from the rows above it. PARENT is NONE
where BASE is 0. Each slot has one owner: the row that holds the end where the slot lies.

    PIN        the most positions that others borrow from the row; it is never cut below that
    IS_CACHED  no request has the row any more; `evict` takes slots from such rows only
    USE        the number of the row's last use, plus RT_USED where a head used it; `evict` begins with the lowest
"""

# mypy takes an element of an array for Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kv.compiled import compiled
from kv.types import MAX_BLOCK_SIZE, Side

Indices: TypeAlias = NDArray[np.intp]
RowColumns: TypeAlias = NDArray[np.int64]
EndColumns: TypeAlias = NDArray[np.int16]
Chain: TypeAlias = NDArray[np.int32]
Numbers: TypeAlias = NDArray[np.int64]

HEAD, TAIL = 0, 1
INDEX_OF_SIDE = {Side.HEAD: HEAD, Side.TAIL: TAIL}
NONE = -1

HELD, LAST, SIDE, BASE, PARENT, PIN, USE, IS_CACHED, WRITTEN = range(9)
NUM_ROW_COLUMNS = 9
FILL, GROWS, ROOM = 0, 1, 2
# HELD_BLOCKS and FIRST_FREE are two numbers each, by side. Heads take free blocks from the low end of the pool, tails
# from the high end. FIRST_FREE counts blocks in that order: the first FIRST_FREE of them are not free.
FREE_BLOCKS, HELD_BLOCKS, FIRST_FREE, BLOCK_SIZE, IS_SHARED, TAILS_FROM_RIGHT = 0, 1, 3, 5, 6, 7
NUM_USES, NUM_CACHED, NUM_EVICTED = 8, 9, 10  # uses so far, cached rows now, slots evicted so far
EVICTS_BY_CLASS = 11
NUM_NUMBERS = 12
RT_USED = 1 << 40
EVERYTHING = 1 << 40  # slots, more than there are

# The rank of a room is its slots, plus SETTLED beside a settled row. A row enters the room of the highest rank.
SETTLED = 2 * MAX_BLOCK_SIZE
ROOM_MASK = SETTLED - 1

_LOOK = 1_024  # blocks in one pass of the search for the highest rank

_C = "int64[:,::1], int16[:,::1], int32[::1], int64[::1]"


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


# One end


@compiled()
def _opposite(ends: EndColumns, end: int) -> int:
    """Return the other end of the same block."""
    num_blocks = ends.shape[1] // 2
    return end + num_blocks if end < num_blocks else end - num_blocks


@compiled()
def _room_at(ends: EndColumns, numbers: Numbers, end: int) -> int:
    """Return the free slots in the middle of the block that `end` belongs to."""
    return numbers[BLOCK_SIZE] - ends[FILL, end] - ends[FILL, _opposite(ends, end)]


@compiled()
def _first_slot(ends: EndColumns, numbers: Numbers, end: int) -> tuple[int, int]:
    """Return the slot where the row at `end` begins in its block, and the step to its next one."""
    num_blocks, size = ends.shape[1] // 2, numbers[BLOCK_SIZE]
    if end >= num_blocks and numbers[TAILS_FROM_RIGHT]:
        return (end - num_blocks + 1) * size - 1, -1
    return end % num_blocks * size, 1


@compiled()
def _rank(ends: EndColumns, numbers: Numbers, end: int, opposite: int) -> int:
    """Return the rank of the room at `end`: 0 where a row is already, and in a free block.

    It is 0 everywhere unless the layout is TWO_ENDED. TWO_ENDED and UNSHARED differ in nothing else.
    """
    room = numbers[BLOCK_SIZE] - ends[FILL, opposite]
    if not numbers[IS_SHARED] or ends[FILL, end] or not ends[FILL, opposite] or not room:
        return 0
    return room if ends[GROWS, opposite] else room + SETTLED


@compiled()
def _set_rooms(ends: EndColumns, numbers: Numbers, end: int) -> None:
    """Compute the rank of the room at both ends of a block, after one of the ends has changed."""
    opposite = _opposite(ends, end)
    ends[ROOM, end] = _rank(ends, numbers, end, opposite)
    ends[ROOM, opposite] = _rank(ends, numbers, opposite, end)


@compiled()
def _enter(ends: EndColumns, numbers: Numbers, side: int, end: int, num_slots: int, is_last: bool) -> None:
    """Give an end without a row to a row that fills `num_slots` there, and grows there if it `is_last`."""
    numbers[FREE_BLOCKS] -= ends[FILL, _opposite(ends, end)] == 0
    numbers[HELD_BLOCKS + side] += 1
    ends[FILL, end] = num_slots
    ends[GROWS, end] = is_last
    _set_rooms(ends, numbers, end)


@compiled()
def _leave(ends: EndColumns, numbers: Numbers, end: int) -> None:
    """Take an end from its row."""
    num_blocks = ends.shape[1] // 2
    block, side = end % num_blocks, end // num_blocks
    ends[FILL, end] = 0
    ends[GROWS, end] = False
    _set_rooms(ends, numbers, end)
    numbers[HELD_BLOCKS + side] -= 1
    if ends[FILL, _opposite(ends, end)] == 0:
        numbers[FREE_BLOCKS] += 1
        numbers[FIRST_FREE + HEAD] = min(numbers[FIRST_FREE + HEAD], block)
        numbers[FIRST_FREE + TAIL] = min(numbers[FIRST_FREE + TAIL], num_blocks - 1 - block)


@compiled()
def _free_end(ends: EndColumns, numbers: Numbers, side: int) -> int:
    """Return an end of a free block: the lowest such block for heads, the highest for tails. There must be one."""
    num_blocks = ends.shape[1] // 2
    index = numbers[FIRST_FREE + side]
    block = index if side == HEAD else num_blocks - 1 - index
    while ends[FILL, block] or ends[FILL, block + num_blocks]:
        index += 1
        block = index if side == HEAD else num_blocks - 1 - index
    numbers[FIRST_FREE + side] = index
    return side * num_blocks + block


@compiled()
def _best_shared_end(ends: EndColumns, side: int) -> int:
    """Return the end on `side` of the highest rank, which must not be 0. Among equals it is the lowest end."""
    num_blocks = ends.shape[1] // 2
    rooms = ends[ROOM, side * num_blocks : (side + 1) * num_blocks]
    best, highest = 0, np.int16(0)
    for start in range(0, num_blocks, _LOOK):
        part = rooms[start : start + _LOOK]
        highest_here = np.int16(0)
        for index in range(len(part)):  # numba vectorises this form
            highest_here = max(highest_here, part[index])
        if highest_here > highest:
            best, highest = start, highest_here
    while rooms[best] != highest:
        best += 1
    return side * num_blocks + best


@compiled()
def _head_gain(ends: EndColumns, numbers: Numbers, end: int) -> int:
    """Return the slots by which `newcomer_room(HEAD)` grows when the row at `end` leaves it."""
    num_blocks, size, opposite = ends.shape[1] // 2, numbers[BLOCK_SIZE], _opposite(ends, end)
    if end >= num_blocks:  # a tail. A new head could enter the room beside it already. Beside a head it gains nothing.
        return 0 if ends[FILL, opposite] else size - (ends[ROOM, opposite] & ROOM_MASK)
    if not ends[FILL, opposite]:
        return size
    return size - ends[FILL, opposite] if numbers[IS_SHARED] else 0


# Growing


@compiled("int64(int16[:,::1], int64[::1], int64)")
def newcomer_room(ends: EndColumns, numbers: Numbers, side: int) -> int:
    """Return how many slots a new row on `side` could take."""
    num_blocks = ends.shape[1] // 2
    rooms = ends[ROOM, side * num_blocks : (side + 1) * num_blocks]
    num_slots = numbers[FREE_BLOCKS] * numbers[BLOCK_SIZE]
    for index in range(num_blocks):
        num_slots += rooms[index] & ROOM_MASK
    return num_slots


@compiled(f"boolean({_C}, int64, int64)")
def grow(rows: RowColumns, ends: EndColumns, previous: Chain, numbers: Numbers, row: int, num_slots: int) -> bool:
    """Give `row` slots for `num_slots` more positions. Return False, with nothing changed, when there is no room.

    The row takes slots in this order. Among equal blocks, the one of the lowest number comes first.

    1. The middle of its own last block.
    2. Free blocks.
    3. Blocks beside a settled row, those with most room first.
    4. Blocks beside a growing row, those with most room first.
    """
    assert 0 <= row < rows.shape[1], "no row to grow has this number"
    assert rows[SIDE, row] != NONE, "a row that is to grow is not open"
    last = rows[LAST, row]
    num_own = min(num_slots, _room_at(ends, numbers, last)) if last != NONE else 0
    num_rest = num_slots - num_own
    side = rows[SIDE, row]
    if num_rest > numbers[FREE_BLOCKS] * numbers[BLOCK_SIZE] and num_rest > newcomer_room(ends, numbers, side):
        return False
    if last != NONE and num_slots > 0:
        ends[FILL, last] += num_own
        ends[GROWS, last] = num_rest == 0
        _set_rooms(ends, numbers, last)
    rows[HELD, row] += num_slots
    while num_rest > 0:
        end = _free_end(ends, numbers, side) if numbers[FREE_BLOCKS] > 0 else _best_shared_end(ends, side)
        num_taken = min(num_rest, numbers[BLOCK_SIZE] - ends[FILL, _opposite(ends, end)])
        num_rest -= num_taken
        _enter(ends, numbers, side, end, num_taken, num_rest == 0)
        previous[end] = rows[LAST, row]
        rows[LAST, row] = end
    return True


@compiled(f"int64({_C}, int64[::1], int64[::1])")
def grow_each(
    rows: RowColumns, ends: EndColumns, previous: Chain, numbers: Numbers, growing: Indices, num_slots: Numbers
) -> int:
    """Grow each of `growing` by its `num_slots`, in order, until one finds no room. Return how many grew."""
    for index in range(len(growing)):
        row, num = growing[index], num_slots[index]
        assert 0 <= row < rows.shape[1], "no row to grow has this number"
        last = rows[LAST, row]
        if last != NONE and ends[GROWS, last] and _room_at(ends, numbers, last) >= num:  # the common case: no `grow`
            rows[HELD, row] += num
            ends[FILL, last] += num
            opposite = _opposite(ends, last)
            ends[ROOM, opposite] = _rank(ends, numbers, opposite, last)
        elif not grow(rows, ends, previous, numbers, row, num):
            return index
    return len(growing)


@compiled("int64(int64[:,::1], int16[:,::1], int64[::1], int64[::1])")
def most_new_blocks(rows: RowColumns, ends: EndColumns, numbers: Numbers, growing: Indices) -> int:
    """Return how many free blocks `growing` can take if each grows by one slot.

    A row takes none while its own block has room. Only in the layout TWO_ENDED can another row take that.
    """
    num = 0
    for row in growing:
        last = rows[LAST, row]
        num += last == NONE or numbers[IS_SHARED] != 0 or ends[FILL, last] == numbers[BLOCK_SIZE]
    return num


@compiled()
def _held_by_requests(rows: RowColumns) -> Indices:
    """Return int64 [rows]: how many positions of each row the rows of requests borrow, directly or through others."""
    held = np.zeros(rows.shape[1], np.int64)
    for row in range(rows.shape[1]):
        if rows[SIDE, row] != NONE and not rows[IS_CACHED, row]:
            child = row
            while rows[PARENT, child] != NONE and held[rows[PARENT, child]] < rows[BASE, child]:
                held[rows[PARENT, child]] = rows[BASE, child]
                child = rows[PARENT, child]
    return held


@compiled()
def _evictable(rows: RowColumns, ends: EndColumns, previous: Chain) -> NDArray[np.int16]:
    """Return int16 [ends]: how many slots of each end could be evicted."""
    evictable = np.zeros(ends.shape[1], np.int16)
    held = _held_by_requests(rows)
    for row in range(rows.shape[1]):
        if rows[IS_CACHED, row]:
            stop, end, num_kept = rows[HELD, row], rows[LAST, row], max(held[row], rows[BASE, row])
            while stop > num_kept:
                evictable[end] = min(ends[FILL, end], stop - num_kept)
                stop, end = stop - ends[FILL, end], previous[end]
    return evictable


@compiled(f"int64({_C}, int64, int64)")
def max_growth(rows: RowColumns, ends: EndColumns, previous: Chain, numbers: Numbers, row: int, side: int) -> int:
    """Return the most slots that `row` can grow by if all cached rows are evicted. NONE means a new row on `side`."""
    last = rows[LAST, row] if row != NONE else NONE
    own_room = _room_at(ends, numbers, last) if last != NONE else 0
    if not numbers[NUM_CACHED]:
        return own_room + newcomer_room(ends, numbers, side)
    num_blocks, size = ends.shape[1] // 2, numbers[BLOCK_SIZE]
    evictable = _evictable(rows, ends, previous)
    num_slots = own_room + evictable[_opposite(ends, last)] if last != NONE else 0
    for end in range(side * num_blocks, (side + 1) * num_blocks):
        opposite = _opposite(ends, end)
        num_beside = ends[FILL, opposite] - evictable[opposite]
        if ends[FILL, end] == evictable[end] and (numbers[IS_SHARED] or not num_beside):
            num_slots += size - num_beside
    return num_slots


@compiled(f"int16[::1]({_C})")
def cached_fill(rows: RowColumns, ends: EndColumns, previous: Chain, numbers: Numbers) -> NDArray[np.int16]:
    """Return int16 [ends]: how many slots of each end a cached row owns."""
    found = np.zeros(ends.shape[1], np.int16)
    for row in range(rows.shape[1] if numbers[NUM_CACHED] else 0):
        end = rows[LAST, row] if rows[IS_CACHED, row] else NONE
        while end != NONE:
            found[end] = ends[FILL, end]
            end = previous[end]
    return found


@compiled("int64(int64[:,::1], int64[::1])")
def num_borrowed_cached(rows: RowColumns, numbers: Numbers) -> int:
    """Return the slots that cached rows own and requests borrow."""
    if not numbers[NUM_CACHED] or rows[PARENT].max() == NONE:
        return 0
    num_slots = 0
    held = _held_by_requests(rows)
    for row in range(rows.shape[1]):
        if rows[IS_CACHED, row]:
            num_slots += max(0, held[row] - rows[BASE, row])
    return num_slots


# Giving up


@compiled()
def _borrow_less(rows: RowColumns, row: int, num_slots: int) -> None:
    """Let `row` borrow only its first `num_slots` positions. It must own none."""
    before = lender = rows[PARENT, row]
    while lender != NONE and num_slots <= rows[BASE, lender]:
        lender = rows[PARENT, lender]
    rows[BASE, row] = num_slots
    rows[PARENT, row] = lender
    rows[PIN, before] = 0
    for child in range(rows.shape[1]):
        if rows[PARENT, child] == before:
            rows[PIN, before] = max(rows[PIN, before], rows[BASE, child])
    if lender != NONE:
        rows[PIN, lender] = max(rows[PIN, lender], num_slots)


@compiled(f"int64({_C}, int64, int64)")
def shrink(rows: RowColumns, ends: EndColumns, previous: Chain, numbers: Numbers, row: int, num_kept: int) -> int:
    """Take positions [num_kept, held) from `row`, but none that others borrow. Return how many positions it keeps.

    The row is settled until it grows again.
    """
    num_kept = max(num_kept, rows[PIN, row])
    if num_kept == rows[HELD, row]:
        return num_kept
    num_lost = rows[HELD, row] - max(num_kept, rows[BASE, row])
    last = rows[LAST, row]
    while num_lost > 0 and ends[FILL, last] <= num_lost:
        num_lost -= ends[FILL, last]
        _leave(ends, numbers, last)
        last = previous[last]
    if last != NONE:
        ends[FILL, last] -= num_lost
        ends[GROWS, last] = False
        _set_rooms(ends, numbers, last)
    rows[LAST, row] = last
    rows[HELD, row] = num_kept
    rows[WRITTEN, row] = min(rows[WRITTEN, row], num_kept)
    if num_kept < rows[BASE, row]:
        _borrow_less(rows, row, num_kept)
    return num_kept


@compiled(f"int64[:,::1]({_C}, int64)")
def boundaries(rows: RowColumns, ends: EndColumns, previous: Chain, numbers: Numbers, row: int) -> Indices:
    """Return int64 [ends, 2] from the last end of `row` backwards: positions kept without it, slots a new head gains.

    The slots count from the last end up to this one. Ends with slots that others borrow are left out.
    """
    num_ends, num_kept, end = 0, rows[HELD, row], rows[LAST, row]
    while end != NONE and num_kept - ends[FILL, end] >= rows[PIN, row]:
        num_ends, num_kept, end = num_ends + 1, num_kept - ends[FILL, end], previous[end]
    found = np.empty((num_ends, 2), np.int64)
    num_kept, num_gained, end = rows[HELD, row], 0, rows[LAST, row]
    for index in range(num_ends):
        num_kept -= ends[FILL, end]
        num_gained += _head_gain(ends, numbers, end)
        found[index, 0], found[index, 1] = num_kept, num_gained
        end = previous[end]
    return found


# Sharing


@compiled()
def _use(rows: RowColumns, numbers: Numbers, row: int, side: int) -> None:
    """Record the latest use: a row on `side` uses `row`."""
    is_rt = numbers[EVICTS_BY_CLASS] and (side == HEAD or rows[USE, row] >= RT_USED)
    rows[USE, row] = numbers[NUM_USES] + (RT_USED if is_rt else 0)


@compiled("void(int64[:,::1], int64[::1], int64, int64)")
def use(rows: RowColumns, numbers: Numbers, row: int, side: int) -> None:
    """Record that a row on `side` uses `row` and all that it borrows from, or will."""
    numbers[NUM_USES] += 1
    while row != NONE:
        _use(rows, numbers, row, side)
        row = rows[PARENT, row]


@compiled("void(int64[:,::1], int64[::1], int64, int64, int64)")
def borrow(rows: RowColumns, numbers: Numbers, row: int, lender: int, num_slots: int) -> None:
    """Let `row` begin with the first `num_slots` positions of `lender`. It must hold nothing."""
    assert rows[HELD, row] == 0, "a row that is to borrow holds something"
    assert 0 < num_slots <= rows[HELD, lender], "a row lends more than it holds"
    while num_slots <= rows[BASE, lender]:
        lender = rows[PARENT, lender]
    rows[PARENT, row] = lender
    rows[BASE, row] = rows[HELD, row] = num_slots
    rows[PIN, lender] = max(rows[PIN, lender], num_slots)
    use(rows, numbers, lender, rows[SIDE, row])


@compiled(f"int64({_C}, int64, int64)")
def leave_cached(rows: RowColumns, ends: EndColumns, previous: Chain, numbers: Numbers, row: int, num_kept: int) -> int:
    """Take `row` from its request. Its first `num_kept` positions stay, and all that others borrow.

    Return how many stay. Where none of its own positions stays, the row is closed.
    """
    if num_kept <= rows[BASE, row]:
        num_kept = 0
    num_kept = shrink(rows, ends, previous, numbers, row, num_kept)
    if not num_kept:
        rows[SIDE, row] = NONE
        rows[USE, row] = 0
        return 0
    numbers[NUM_CACHED] += 1
    numbers[NUM_USES] += 1
    rows[IS_CACHED, row] = True
    _use(rows, numbers, row, rows[SIDE, row])
    ends[GROWS, rows[LAST, row]] = False
    _set_rooms(ends, numbers, rows[LAST, row])
    return num_kept


@compiled()
def _newcomer_room_in(ends: EndColumns, numbers: Numbers, side: int, block: int) -> int:
    """Return how many slots of one block a new row on `side` could take."""
    num_blocks = ends.shape[1] // 2
    if not ends[FILL, block] and not ends[FILL, block + num_blocks]:
        return numbers[BLOCK_SIZE]
    return ends[ROOM, side * num_blocks + block] & ROOM_MASK


@compiled()
def _cached_rows(rows: RowColumns, numbers: Numbers) -> Indices:
    """Return the cached rows, ascending."""
    cached, num_found = np.empty(numbers[NUM_CACHED], np.int64), 0
    for row in range(rows.shape[1]):
        if rows[IS_CACHED, row]:
            cached[num_found] = row
            num_found += 1
    return cached


@compiled()
def _first_victim(rows: RowColumns, cached: Indices) -> int:
    """Return the row to evict from first, of those in `cached` that still are: the lowest USE; or NONE."""
    victim = NONE
    for index in range(len(cached)):
        row = cached[index]
        is_before = victim == NONE or rows[USE, row] < rows[USE, victim]
        if is_before and rows[IS_CACHED, row] and rows[HELD, row] > rows[PIN, row]:
            victim = row
    return victim


@compiled(f"int64({_C}, int64, int64, int64, int64, int64[:,::1])")
def evict(
    rows: RowColumns,
    ends: EndColumns,
    previous: Chain,
    numbers: Numbers,
    row: int,
    side: int,
    num_slots: int,
    num_free_blocks: int,
    evicted: NDArray[np.int64],
) -> int:
    """Take ends from cached rows until `row` can grow by `num_slots` and `num_free_blocks` are free.

    A `row` of NONE means a new row on `side`. Eviction stops early when nothing is left to take. A row that keeps
    nothing is closed. Write each row that lost slots to `evicted`, with the positions it keeps and whether a head used
    it. Return how many.
    """
    num_blocks, num_evicted = ends.shape[1] // 2, 0
    last = rows[LAST, row] if row != NONE else NONE
    room = newcomer_room(ends, numbers, side)
    victim, least, is_rt_used = NONE, 0, False
    cached = _cached_rows(rows, numbers)
    while True:
        own_room = _room_at(ends, numbers, last) if last != NONE else 0
        is_enough = room + own_room >= num_slots and numbers[FREE_BLOCKS] >= num_free_blocks
        if victim != NONE and (is_enough or rows[HELD, victim] == least):
            if rows[HELD, victim] == rows[BASE, victim]:
                numbers[NUM_CACHED] -= 1
                rows[IS_CACHED, victim] = False
                leave_cached(rows, ends, previous, numbers, victim, 0)
            rows[WRITTEN, victim] = min(rows[WRITTEN, victim], rows[HELD, victim])
            evicted[num_evicted, 0], evicted[num_evicted, 1] = victim, rows[HELD, victim]
            evicted[num_evicted, 2] = is_rt_used
            num_evicted += 1
            victim = NONE
        if is_enough:
            break
        if victim == NONE:
            victim = _first_victim(rows, cached)
            if victim == NONE:
                break
            least, is_rt_used = max(rows[PIN, victim], rows[BASE, victim]), rows[USE, victim] >= RT_USED
        end = rows[LAST, victim]
        num_taken = min(ends[FILL, end], rows[HELD, victim] - least)
        room -= _newcomer_room_in(ends, numbers, side, end % num_blocks)
        if num_taken == ends[FILL, end]:  # nothing grows at the ends of a cached row: `shrink` would do no more
            _leave(ends, numbers, end)
            rows[LAST, victim] = previous[end]
            rows[HELD, victim] -= num_taken
        else:
            shrink(rows, ends, previous, numbers, victim, least)
        numbers[NUM_EVICTED] += num_taken
        room += _newcomer_room_in(ends, numbers, side, end % num_blocks)
    return num_evicted


# Positions to slots


@compiled("void(int64[:,::1], int16[:,::1], int64[::1], int32[:,::1], int64[::1])")
def write_last(
    rows: RowColumns, ends: EndColumns, numbers: Numbers, slots: NDArray[np.int32], written: Indices
) -> None:
    """Write the slot of the last position of each row in `written` to `slots`, int32 [rows, max_seq_len]."""
    for index in range(len(written)):
        row = written[index]
        end, position = rows[LAST, row], rows[HELD, row] - 1
        assert 0 <= position < slots.shape[1], "a row is longer than the slot table is wide"
        first, step = _first_slot(ends, numbers, end)
        slots[row, position] = first + step * (ends[FILL, end] - 1)


@compiled(f"void({_C}, int32[:,::1], int64, int64)")
def write_from(
    rows: RowColumns,
    ends: EndColumns,
    previous: Chain,
    numbers: Numbers,
    slots: NDArray[np.int32],
    row: int,
    start: int,
) -> None:
    """Write the slots of positions [start, held) of `row` to `slots`, int32 [rows, max_seq_len], borrowed ones too."""
    stop, owner = rows[HELD, row], row
    assert 0 <= start <= stop <= slots.shape[1], "a row is longer than the slot table is wide"
    while stop > start:
        end_stop, end = rows[HELD, owner], rows[LAST, owner]
        while end != NONE and stop > start:
            first, step = _first_slot(ends, numbers, end)
            end_start = end_stop - ends[FILL, end]
            for position in range(max(start, end_start), stop):
                slots[row, position] = first + step * (position - end_start)
            stop, end_stop, end = min(stop, end_start), end_start, previous[end]
        owner = rows[PARENT, owner]
