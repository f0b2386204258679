"""The slow, obvious twin of the KV cache: dictionaries, one slot at a time, copied whole where it must be undone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from kv.types import KVConfig, Layout, Side


@dataclass
class TwinRow:
    """A holder: its slots by position, the first `base` those of `parent`, and whether it was shrunk since it grew."""

    side: Side
    slots: list[int] = field(default_factory=list)
    is_asleep: bool = False
    base: int = 0
    parent: int | None = None
    is_cached: bool = False
    is_rt_used: bool = False
    last_use: int = 0


class Twin:
    """Does what KVCacheManager says, as its documentation reads."""

    def __init__(self, config: KVConfig) -> None:
        self.config = config
        self.rows: dict[int, TwinRow] = {}
        self.num_written: dict[int, int] = {}
        self.copies: dict[int, int] = {}  # row: length of its checkpoint; oldest copy first
        self.copied_now: set[int] = set()  # rows whose checkpoint a copy of this step writes
        self.num_in_flight = 0
        self.num_uses = 0
        self.lenders: dict[tuple[object, ...], list[int]] = {}  # by salt and tokens of a prefix, in whole segments
        self.on_host: list[tuple[object, ...]] = []  # evicted prefixes, the last segment of each; last used last
        self.locked: set[tuple[object, ...]] = set()  # of those, what copies of this step read
        self.unsaved: list[tuple[object, ...]] = []  # of those, what no step copies yet

    # Rows

    def open(self, row: int, side: Side) -> None:
        assert row not in self.rows
        self.rows[row] = TwinRow(side)
        self.num_written[row] = 0

    def close(self, row: int) -> None:
        self._leave(row, 0)

    def begin_step(self) -> None:
        self.num_in_flight = 0
        self.copied_now.clear()
        self.locked.clear()
        self.num_written = {row: len(holder.slots) for row, holder in self.rows.items()}

    # Growth

    def grow(self, row: int, num_slots: int) -> bool:
        if not self.place(row, num_slots):
            return False
        self.cut_copies(row, num_slots, is_read=False)
        return True

    def grow_all(self, rows: list[int]) -> int:
        """Grow by one each until one cannot; return how many grew."""
        for index, row in enumerate(rows):
            if not self.grow(row, 1):
                return index
        return len(rows)

    def max_growth(self, row: int | None, side: Side) -> int:
        trial = copy.deepcopy(self)
        trial.evict_all()
        if row is None:
            row = -1
            trial.open(row, side)
        num_slots = 0
        while trial.place(row, 1):
            num_slots += 1
        return num_slots

    def restore(self, row: int, num_slots: int) -> None:
        assert self.place(row, num_slots)
        self.cut_copies(row, num_slots, is_read=True)

    def place(self, row: int, num_slots: int) -> bool:
        """Give slots without a change to the host pool; evict cached slots, end by end, until there are enough."""
        if self._place_now(row, num_slots):
            return True
        before = copy.deepcopy((self.rows, self.lenders, self.on_host, self.locked, self.unsaved))
        while self._evict_end():
            if self._place_now(row, num_slots):
                return True
        self.rows, self.lenders, self.on_host, self.locked, self.unsaved = before
        return False

    def _place_now(self, row: int, num_slots: int) -> bool:
        before = copy.deepcopy(self.rows[row])
        for _ in range(num_slots):
            slot = self._next_slot(row)
            if slot is None:
                self.rows[row] = before
                return False
            self.rows[row].slots.append(slot)
            self.rows[row].is_asleep = False
        return True

    def _next_slot(self, row: int) -> int | None:
        holder = self.rows[row]
        if len(holder.slots) > holder.base and self._free_slots(self._block(holder.slots[-1])):
            block = self._block(holder.slots[-1])
        else:
            candidates = [block for block in range(self.config.num_blocks) if self._preference(block, holder)]
            if not candidates:
                return None
            block = max(candidates, key=lambda block: self._preference(block, holder))
        free = self._free_slots(block)
        from_right = holder.side is Side.TAIL and self.config.layout is not Layout.WHOLE_BLOCK
        return max(free) if from_right else min(free)

    def _preference(self, block: int, newcomer: TwinRow) -> tuple[int, ...]:
        """Return how good a block is for a newcomer; () where it cannot enter."""
        holders, num_free = self._holders(block), len(self._free_slots(block))
        from_low = newcomer.side is Side.HEAD
        if not holders:
            return (2, 0, -block if from_low else block)
        if self.config.layout is not Layout.TWO_ENDED or not num_free:
            return ()
        if any(holder.side is newcomer.side for holder in holders):
            return ()
        (holder,) = holders
        grows_there = not holder.is_asleep and self._block(holder.slots[-1]) == block
        return (0 if grows_there else 1, num_free, -block)

    # Giving up

    def shrink(self, row: int, num_kept: int, checkpoint: bool) -> int:
        """Return how many positions are copied out."""
        holder, num_written = self.rows[row], self.num_written[row]
        num_held = len(holder.slots)
        num_kept = max(num_kept, self._pin(row))
        if num_kept == num_held:
            return 0
        self._cut(row, num_kept)
        self.num_written[row] = min(num_written, num_kept)
        if not checkpoint or num_written < num_held:
            self.discard_copies(row)
        return self._save(row, max(num_written - num_kept, 0)) if checkpoint else 0

    def boundaries(self, row: int) -> list[tuple[int, int]]:
        trial = copy.deepcopy(self)
        trial.evict_all()
        before = trial.max_growth(None, Side.HEAD)
        found: list[tuple[int, int]] = []
        while trial._num_owned(row):
            num_kept = trial._start_of_last_end(row)
            if num_kept < trial._pin(row):
                break
            trial.shrink(row, num_kept, checkpoint=False)
            found.append((num_kept, trial.max_growth(None, Side.HEAD) - before))
        return found

    # Sharing

    def evict_all(self) -> None:
        while self._evict_end():
            pass

    def keep_free(self, least: int, enough: int) -> None:
        def num_free() -> int:
            return sum(not self._holders(block) for block in range(self.config.num_blocks))

        if num_free() < least:
            while num_free() < enough and self._evict_end():
                pass

    def lend(self, row: int, salt: object, tokens: list[int]) -> None:
        for stop in range(self.config.block_size, len(tokens) + 1, self.config.block_size):
            lenders = self.lenders.setdefault((salt, *tokens[:stop]), [])
            if stop > self.rows[row].base and row not in lenders:
                lenders.append(row)

    def find(self, salt: object, tokens: list[int]) -> tuple[int | None, int]:
        """Return who lends first of those that lend most, and how much of all but the last token that is."""
        for stop in range(len(tokens) // self.config.block_size * self.config.block_size, 0, -self.config.block_size):
            if lenders := self.lenders.get((salt, *tokens[:stop])):
                return lenders[0], min(stop, len(tokens) - 1)
        return None, 0

    def borrow(self, row: int, lender: int | None, num_slots: int) -> None:
        while lender is not None and num_slots <= self.rows[lender].base:
            lender = self.rows[lender].parent
        assert lender is not None
        holder = self.rows[row]
        holder.parent, holder.base, holder.slots = lender, num_slots, self.rows[lender].slots[:num_slots]
        self.use(lender, holder.side)

    def use(self, row: int | None, side: Side) -> None:
        self.num_uses += 1
        while row is not None:
            self._use(row, side)
            row = self.rows[row].parent

    def leave_cached(self, row: int, salt: object, tokens: list[int]) -> None:
        self.lend(row, salt, tokens)
        lent = [key for key, lenders in self.lenders.items() if row in lenders]
        is_double = not lent or len(self.lenders[max(lent, key=len)]) > 1
        self._leave(row, 0 if is_double else len(tokens) // self.config.block_size * self.config.block_size)

    def _leave(self, row: int, num_kept: int) -> None:
        holder = self.rows[row]
        self.discard_copies(row)
        self._cut(row, max(num_kept if num_kept > holder.base else 0, self._pin(row)))
        if not holder.slots:
            del self.rows[row]
            return
        self.num_uses += 1
        holder.is_cached = True
        self._use(row, holder.side)

    def _use(self, row: int, side: Side) -> None:
        self.rows[row].is_rt_used |= side is Side.HEAD and self.config.evicts_by_class
        self.rows[row].last_use = self.num_uses

    def _evict_end(self) -> bool:
        """Take the last end, or what nobody borrows of it, of the cached row that was used least."""
        victims = [row for row, holder in self.rows.items() if holder.is_cached and len(holder.slots) > self._pin(row)]
        if not victims:
            return False
        row = min(victims, key=lambda row: (self.rows[row].is_rt_used, self.rows[row].last_use, row))
        num_kept = max(self._pin(row), self._start_of_last_end(row))
        if self.rows[row].is_rt_used:
            self._save_prefixes(row, num_kept)
        self._cut(row, num_kept)
        if not self._num_owned(row):
            del self.rows[row]
        return True

    def _pin(self, row: int) -> int:
        return max((other.base for other in self.rows.values() if other.parent == row), default=0)

    def _cut(self, row: int, num_kept: int) -> None:
        holder = self.rows[row]
        del holder.slots[num_kept:]
        holder.is_asleep = True
        holder.base = min(holder.base, num_kept)
        while holder.parent is not None and holder.base <= self.rows[holder.parent].base:
            holder.parent = self.rows[holder.parent].parent
        for key in [key for key, lenders in self.lenders.items() if row in lenders and len(key) - 1 > num_kept]:
            self.lenders[key].remove(row)

    def _num_owned(self, row: int) -> int:
        return len(self.rows[row].slots) - self.rows[row].base

    def _start_of_last_end(self, row: int) -> int:
        holder = self.rows[row]
        block = self._block(holder.slots[-1])
        return next(
            index
            for index, slot in enumerate(holder.slots)
            if index >= holder.base and all(self._block(later) == block for later in holder.slots[index:])
        )

    # The host pool

    def num_host_free(self) -> int:
        return self.config.num_host_slots - sum(self.copies.values()) - self.num_in_flight

    def discard_copies(self, row: int) -> None:
        self.cut_copies(row, self.copies.get(row, 0), is_read=False)

    def _save(self, row: int, num_positions: int) -> int:
        while self.num_host_free() < num_positions:
            droppable = [other for other in self.copies if other not in self.copied_now]
            if not droppable:
                break
            self.cut_copies(droppable[0], 1, is_read=False)
        num_saved = min(num_positions, self.num_host_free())
        if num_saved < num_positions:
            self.discard_copies(row)
        if num_saved:
            self.copies[row] = self.copies.pop(row, 0) + num_saved
            self.copied_now.add(row)
        return num_saved

    def cut_copies(self, row: int, num_slots: int, *, is_read: bool) -> None:
        """Take the first copies of `row`, as many as are there."""
        num_slots = min(num_slots, self.copies.get(row, 0))
        if not num_slots:
            return
        if is_read or row in self.copied_now:
            self.num_in_flight += num_slots
        self.copies[row] -= num_slots
        if not self.copies[row]:
            del self.copies[row]
            self.copied_now.discard(row)

    def num_on_host(self, salt: object, tokens: list[int], start: int) -> int:
        """Return how many tokens, but the last one, the host has from `start` on."""
        size, stop = self.config.block_size, start
        while start % size == 0 and stop + size <= len(tokens) and (salt, *tokens[: stop + size]) in self.on_host:
            stop += size
        return max(min(stop, len(tokens) - 1) - start, 0)

    def take_prefix(self, salt: object, tokens: list[int], start: int, num_tokens: int) -> None:
        """Use the segments that are copied in, the last one first."""
        size = self.config.block_size
        for first in reversed(range(start, start + num_tokens, size)):
            self._use_on_host((salt, *tokens[: first + size]))
            self.locked.add((salt, *tokens[: first + size]))

    def discard_prefixes(self, written: list[tuple[object, ...]]) -> None:
        self.on_host = [key for key in self.on_host if key not in written]
        self.locked -= set(written)

    def _save_prefixes(self, row: int, num_kept: int) -> None:
        """Bring the segments that nobody lends after a cut of `row` to the host, the last one first."""
        lost = [key for key, lenders in self.lenders.items() if lenders == [row] and len(key) - 1 > num_kept]
        for key in sorted(lost, key=len, reverse=True):
            if key not in self.on_host:
                if len(self.on_host) == self.config.num_host_prefix_slots // self.config.block_size:
                    unlocked = [other for other in self.on_host if other not in self.locked]
                    if not unlocked:
                        return
                    self.on_host.remove(unlocked[0])
                    self.unsaved = [other for other in self.unsaved if other != unlocked[0]]
                self.unsaved.append(key)
            self._use_on_host(key)

    def _use_on_host(self, key: tuple[object, ...]) -> None:
        if key in self.on_host:
            self.on_host.remove(key)
        self.on_host.append(key)

    # Looking

    def _block(self, slot: int) -> int:
        return slot // self.config.block_size

    def _holders(self, block: int) -> list[TwinRow]:
        return [row for row in self.rows.values() if any(self._block(slot) == block for slot in row.slots[row.base :])]

    def _free_slots(self, block: int) -> list[int]:
        size = self.config.block_size
        taken = {slot for row in self.rows.values() for slot in row.slots}
        return [slot for slot in range(block * size, (block + 1) * size) if slot not in taken]
