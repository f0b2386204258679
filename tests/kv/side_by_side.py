"""The manager and its twin, told the same, with simulated memories under them.

The memories hold a known value for each position computed; copies of a step are made in the executor's order, and every
held position is read back after the step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from kv.budget import KVBudget
from kv.manager import KVCacheManager
from kv.types import KVConfig, Row, Side, SlotCopy
from tests.kv.factories import slots_of
from tests.kv.twin import Twin

Change = tuple[str, Row, int]  # "cut" or "save" to a length, "grow" by some, "decode", or open a "head" or "tail"
SIDE_OF = {"head": Side.HEAD, "tail": Side.TAIL}


class SideBySide:
    """Each method does the same to both and asserts that both answer alike."""

    def __init__(self, config: KVConfig) -> None:
        self.config = config
        self.manager, self.twin = KVCacheManager(config), Twin(config)
        self.device = np.full(config.num_slots, -1)
        self.host = np.full(config.num_host_slots, -1)
        self.copies_out: list[SlotCopy] = []
        self.copies_in: list[SlotCopy] = []
        self.num_written: dict[Row, int] = {}  # leading positions that are not to be computed at the end of the step
        self.names: dict[Row, int] = {}
        self.num_opened = 0

    @property
    def rows(self) -> list[Row]:
        """The open rows, oldest first."""
        return [Row(row) for row in self.twin.rows]

    def num_left(self, row: Row) -> int:
        """Positions that `row` may still grow by before it is as long as a row can be."""
        return self.config.max_seq_len - self.manager.num_held(row)

    def open(self, side: Side) -> Row:
        row = self.manager.open(side)
        self.twin.open(row, side)
        self._name(row)
        return row

    def close(self, *rows: Row) -> None:
        self.manager.close_each(rows)
        for row in rows:
            self.twin.close(row)

    def grow(self, row: Row, num_slots: int) -> bool:
        has_room = self.twin.grow(row, num_slots)
        assert self.manager.grow(row, num_slots) == has_room
        return has_room

    def decode(self, rows: Sequence[Row]) -> int:
        """Grow all or none; return how many could, in order."""
        trial = copy.deepcopy(self.twin)
        num_grown = trial.grow_all(list(rows))
        decodes = np.array(rows, np.int32)
        assert self.manager.budget().try_grow_each_by_one(decodes) == num_grown
        assert self.manager.grow_each_by_one(decodes) == (num_grown == len(rows))
        if num_grown == len(rows):
            self.twin = trial
        return num_grown

    def shrink(self, row: Row, num_kept: int, checkpoint: bool) -> None:
        assert not self.copies_in, "a step shrinks before it restores"
        copies = self.manager.shrink(row, num_kept, checkpoint)
        assert len(copies) == self.twin.shrink(row, num_kept, checkpoint)
        self.copies_out.append(copies)
        self.num_written[row] = min(self.num_written[row], num_kept)

    def restore(self, row: Row, max_slots: int) -> None:
        """Restore up to `max_slots`, as far as there are copies and room, unless the row grew in this step."""
        num_slots = min(max_slots, self.manager.num_restorable(row), self.manager.budget().max_growth(row, Side.HEAD))
        if num_slots and self.num_written[row] == self.manager.num_held(row):
            self.copies_in.append(self.manager.restore(row, num_slots))
            self.twin.restore(row, num_slots)
            self.num_written[row] += num_slots

    def adopt(self, changes: Sequence[Change]) -> None:
        """Try a plan on a budget and adopt it. What is restorable of every second row that grows comes back.

        The twin places slots in the order in which the budget does: promised decodes before promised openings. To its
        host pool it does what all shrinks, then growth in order, would do.
        """
        assert not self.copies_in, "a step shrinks before it restores"
        budget = self.manager.budget()
        num_saved = {}
        promised: list[Change] = []
        for kind, row, number in changes:
            if kind in ("cut", "save"):
                budget.shrink(row, number)
                self._place_all(promised)
                num_saved[row] = self.twin.shrink(row, number, kind == "save")
                self.num_written[row] = min(self.num_written[row], number)
                continue
            has_room = self._try(budget, (kind, row, number))
            change = (kind, row if kind in ("grow", "decode") or not has_room else budget.opened[-1], number)
            if budget._promised:
                index = len(promised)
                while kind == "decode" and index and promised[index - 1][0] in SIDE_OF:
                    index -= 1
                promised.insert(index, change)
            else:
                self._place_all(promised)
                assert self._place(change) == has_room
        self._place_all(promised)
        saved = {row for kind, row, _ in changes if kind == "save"}
        num_grown = {row: len(self.twin.rows[row].slots) - start for row, start in budget.grown.items()}
        can_restore = [row for row, start in budget.grown.items() if row % 2 and self.num_written[row] == start]
        restores = {row: min(self.twin.copies.get(row, 0), num_grown[row]) for row in can_restore}
        adopted = self.manager.adopt(budget, saved, restores)
        assert {row: len(copies) for row, copies in adopted.copies_out.items()} == num_saved
        self.copies_out += adopted.copies_out.values()
        self.copies_in += adopted.copies_in
        for row in [*budget.grown, *map(Row, budget.decodes().tolist())]:
            num_restored = restores.get(row, 0)
            self.twin.cut_copies(row, num_restored, is_read=True)
            self.twin.cut_copies(row, num_grown.get(row, 1) - num_restored, is_read=False)
            self.num_written[row] += num_restored

    def _try(self, budget: KVBudget, change: Change) -> bool:
        kind, row, number = change
        if kind == "decode":
            return budget.try_grow_each_by_one([row]) == 1
        return budget.try_grow(None if kind in SIDE_OF else row, SIDE_OF.get(kind, Side.HEAD), number)

    def _place(self, change: Change) -> bool:
        """Give the twin the slots of a growth, if there is room; open its row where it has none yet."""
        kind, row, number = change
        if kind not in SIDE_OF:
            return self.twin.place(row, number)
        if self.twin.max_growth(None, SIDE_OF[kind]) < number:
            return False
        self.twin.open(row, SIDE_OF[kind])
        self._name(row)
        return self.twin.place(row, number)

    def _place_all(self, promised: list[Change]) -> None:
        for change in promised:
            assert self._place(change)
        promised.clear()

    def discard_copies(self, row: Row) -> None:
        self.manager.discard_copies(row)
        self.twin.discard_copies(row)

    def execute(self) -> None:
        """End the step: copy out, copy in, compute, read everything back; begin the next one."""
        for copies in self.copies_out:
            self.host[copies.host_slots] = self.device[copies.device_slots]
        for copies in self.copies_in:
            self.device[copies.device_slots] = self.host[copies.host_slots]
        for row in self.rows:
            for position, slot in list(enumerate(slots_of(self.manager, row)))[self.num_written[row] :]:
                self.device[slot] = self._value(row, position)
        for row in self.rows:
            values = [self._value(row, position) for position in range(self.manager.num_held(row))]
            assert self.device[slots_of(self.manager, row)].tolist() == values
            self.num_written[row] = len(values)
        self.copies_out, self.copies_in = [], []
        self.manager.begin_step()
        self.twin.begin_step()

    def check(self) -> None:
        """Assert that both are in the same state, and the manager in a sound one."""
        self.manager.check_invariants()
        usage = self.manager.usage()
        assert usage.num_head_slots + usage.num_tail_slots == sum(len(row.slots) for row in self.twin.rows.values())
        assert usage.num_host_slots_used == self.config.num_host_slots - self.twin.num_host_free()
        for row in self.rows:
            assert slots_of(self.manager, row) == self.twin.rows[row].slots
            assert self.manager.num_restorable(row) == self.twin.copies.get(row, 0)

    def end(self) -> None:
        """Close all and assert that the cache is as it was at the start."""
        for row in self.rows:
            self.close(row)
        self.manager.begin_step()
        self.manager.check_invariants()
        usage = self.manager.usage()
        assert (usage.num_free_slots, usage.num_free_blocks) == (self.config.num_slots, self.config.num_blocks)
        assert usage.num_host_slots_used == 0

    def _name(self, row: Row) -> None:
        self.num_written[row] = 0
        self.num_opened += 1
        self.names[row] = self.num_opened

    def _value(self, row: Row, position: int) -> int:
        """Return what stands for the K and V of a position: different for every holder there ever was."""
        return self.names[row] * 1_000 + position
