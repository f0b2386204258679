"""The slow, obvious twin of the KV cache: dictionaries, one slot at a time, copied whole where it must be undone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from kv.types import KVConfig, Layout, Side


@dataclass
class TwinRow:
    """A holder: its slots by position, and whether it was shrunk since it last grew."""

    side: Side
    slots: list[int] = field(default_factory=list)
    is_asleep: bool = False


class Twin:
    """Does what KVCacheManager says, as its documentation reads."""

    def __init__(self, config: KVConfig) -> None:
        self.config = config
        self.rows: dict[int, TwinRow] = {}
        self.num_written: dict[int, int] = {}
        self.copies: dict[int, int] = {}  # row: length of its checkpoint; oldest copy first
        self.copied_now: set[int] = set()  # rows whose checkpoint a copy of this step writes
        self.num_resting = 0

    # Rows

    def open(self, row: int, side: Side) -> None:
        assert row not in self.rows
        self.rows[row] = TwinRow(side)
        self.num_written[row] = 0

    def close(self, row: int) -> None:
        del self.rows[row]
        self.discard_copies(row)

    def begin_step(self) -> None:
        self.num_resting = 0
        self.copied_now.clear()
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
        """Give slots, without a word to the host pool."""
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
        if holder.slots and self._free_slots(self._block(holder.slots[-1])):
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
        if num_kept == num_held:
            return 0
        del holder.slots[num_kept:]
        holder.is_asleep = True
        self.num_written[row] = min(num_written, num_kept)
        if not checkpoint or num_written < num_held:
            self.discard_copies(row)
        return self._save(row, max(num_written - num_kept, 0)) if checkpoint else 0

    def boundaries(self, row: int) -> list[tuple[int, int]]:
        trial = copy.deepcopy(self)
        before = trial.max_growth(None, Side.HEAD)
        found = []
        while slots := trial.rows[row].slots:
            block = self._block(slots[-1])
            num_kept = next(index for index, slot in enumerate(slots) if self._block(slot) == block)
            trial.shrink(row, num_kept, checkpoint=False)
            found.append((num_kept, trial.max_growth(None, Side.HEAD) - before))
        return found

    # The host pool

    def num_host_free(self) -> int:
        return self.config.num_host_slots - sum(self.copies.values()) - self.num_resting

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
            self.num_resting += num_slots
        self.copies[row] -= num_slots
        if not self.copies[row]:
            del self.copies[row]
            self.copied_now.discard(row)

    # Looking

    def _block(self, slot: int) -> int:
        return slot // self.config.block_size

    def _holders(self, block: int) -> list[TwinRow]:
        return [row for row in self.rows.values() if any(self._block(slot) == block for slot in row.slots)]

    def _free_slots(self, block: int) -> list[int]:
        size = self.config.block_size
        taken = {slot for row in self.rows.values() for slot in row.slots}
        return [slot for slot in range(block * size, (block + 1) * size) if slot not in taken]
