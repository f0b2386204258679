"""The KV pool as a picture: a column per block, real-time growing up from its floor, best-effort down from its ceiling.

    ▔▔ ██ ██      best-effort, from the right end of the block
       ▔▔ ██
    ▄▄    ██      free in between
    ██ ▂▂         real-time, from the left end

A column is two character cells of eight levels each: a block of 16 slots is drawn exactly. Where the pool has more
blocks than the map has columns, a column is the sum of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.style import Style
from rich.text import Text

from client.colors import ALARM_COLOR, BE_COLOR, CACHED_COLOR, FREE_COLOR, RT_COLOR
from client.snapshot import KVPoolView

_CELL_LEVELS = 8
_ROWS = 2  # of a band
_LEVELS = _CELL_LEVELS * _ROWS
_LOWER = " ▁▂▃▄▅▆▇█"  # by the number of eighths filled from below


@dataclass(frozen=True, slots=True)
class Column:
    """Levels (0–16) that a column's real-time and best-effort parts reach; together at most 16."""

    rt: int
    be: int
    is_taken: bool = False
    is_cached: bool = False


def draw(pool: KVPoolView, before: KVPoolView | None, width: int, max_bands: int) -> list[Text]:
    """Return the map's lines, at most `width` cells wide and `max_bands` bands of two lines, with a gap in between.

    `before` is the pool of the previous picture: blocks where real-time grew and best-effort shrank stand out.
    """
    columns = list(_columns(pool, before, max_columns=width * max_bands))
    bands = [columns[start : start + width] for start in range(0, len(columns), width)]
    drawn = [[*(_draw_row(band, row) for row in range(_ROWS)), Text()] for band in bands]
    return [line for band in drawn for line in band][:-1]


def _columns(pool: KVPoolView, before: KVPoolView | None, max_columns: int) -> Iterator[Column]:
    size = -(-pool.num_blocks // max_columns)  # blocks per column
    is_comparable = before is not None and before.num_blocks == pool.num_blocks
    for start in range(0, pool.num_blocks, size):
        part = slice(start, start + size)
        rt, be = sum(pool.head_fill[part]), sum(pool.tail_fill[part])
        is_taken = (
            is_comparable
            and before is not None
            and rt > sum(before.head_fill[part])
            and be < sum(before.tail_fill[part])
        )
        num_slots = pool.block_size * len(pool.head_fill[part])
        num_cached = sum(pool.cached_fill[part])
        is_cached = num_cached > 0 and 2 * num_cached >= num_slots - rt - be
        yield replace(_column(rt, be, num_slots, is_taken), is_cached=is_cached)


def _column(rt: int, be: int, num_slots: int, is_taken: bool) -> Column:
    """Return the levels for counts of slots. A count above zero is at least one level high."""
    rt_level = -(-_LEVELS * rt // num_slots)
    be_level = min(-(-_LEVELS * be // num_slots), _LEVELS - rt_level)
    return Column(rt_level, be_level, is_taken)


def _draw_row(columns: list[Column], row: int) -> Text:
    """Draw one line of a band; row 0 is the upper one."""
    text = Text()
    for column in columns:
        floor = (_ROWS - 1 - row) * _CELL_LEVELS  # level at which this cell begins
        rt = min(max(column.rt - floor, 0), _CELL_LEVELS)
        be = min(max(column.be - (_LEVELS - floor - _CELL_LEVELS), 0), _CELL_LEVELS)
        gap_color = CACHED_COLOR if column.is_cached else FREE_COLOR
        text.append(*_cell(rt, be, ALARM_COLOR if column.is_taken else RT_COLOR, gap_color))
    return text


def _cell(rt: int, be: int, rt_color: str, gap_color: str) -> tuple[str, Style]:
    """Return a cell with `rt` eighths from below and `be` from above.

    A cell has two colours: of three parts, the free gap between the two goes to whichever neighbour is larger.
    """
    free = _CELL_LEVELS - rt - be
    for part, color in ((rt, rt_color), (be, BE_COLOR), (free, gap_color)):
        if part == _CELL_LEVELS:
            return " ", Style(bgcolor=color)
    if rt == 0:
        return _LOWER[free], Style(color=gap_color, bgcolor=BE_COLOR)
    if be == 0 or free > be:
        return _LOWER[rt], Style(color=rt_color, bgcolor=gap_color)
    return _LOWER[rt], Style(color=rt_color, bgcolor=BE_COLOR)
