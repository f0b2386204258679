"""The manager and its twin, told the same, with simulated memories under them.

The memories hold a known value for each position computed; copies of a step are made in the executor's order, and every
held position is read back after the step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from kv import KVCacheManager, KVConfig, Row, Side, SlotCopy
from tests.kv.factories import slots_of
from tests.kv.twin import Twin


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
        self.num_written[row] = 0
        self.num_opened += 1
        self.names[row] = self.num_opened
        return row

    def close(self, row: Row) -> None:
        self.manager.close(row)
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

    def _value(self, row: Row, position: int) -> int:
        """Return what stands for the K and V of a position: different for every holder there ever was."""
        return self.names[row] * 1_000 + position
