"""Any sequence of calls leaves the manager as it leaves its twin, and K and V where the slot table says they are.

The machine also simulates the memories: it writes a known value for each position computed, makes the copies of each
step in the executor's order, and reads every held position back after the step.
"""

from __future__ import annotations

import copy

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from kv import KVCacheManager, KVConfig, Row, Side, SlotCopy
from tests.kv.factories import configs, slots_of
from tests.kv.twin import Twin

SIDES = st.sampled_from(Side)


class KVMachine(RuleBasedStateMachine):
    rows = Bundle("rows")

    @initialize(config=configs())
    def start(self, config: KVConfig) -> None:
        self.manager, self.twin = KVCacheManager(config), Twin(config)
        self.device = np.full(config.num_slots, -1)
        self.host = np.full(config.num_host_slots, -1)
        self.copies_out: list[SlotCopy] = []
        self.copies_in: list[SlotCopy] = []
        self.written: dict[Row, int] = {}  # positions that need not be computed at the end of the step
        self.num_opened = 0
        self.names: dict[Row, int] = {}

    # What a scheduler does

    @rule(target=rows, side=SIDES)
    def open(self, side: Side) -> Row:
        row = self.manager.open(side)
        self.twin.open(row, side)
        self.written[row] = 0
        self.names[row] = self.num_opened = self.num_opened + 1
        return row

    @rule(row=consumes(rows))
    def close(self, row: Row) -> None:
        self.manager.close(row)
        self.twin.close(row)

    @rule(row=rows, num_slots=st.integers(0, 12))
    def grow(self, row: Row, num_slots: int) -> None:
        num_slots = min(num_slots, self._num_left(row))
        assert self.manager.grow(row, num_slots) == self.twin.grow(row, num_slots)

    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        rows = data.draw(st.permutations([row for row in self.twin.rows if self._num_left(Row(row))]))
        rows = rows[: data.draw(st.integers(0, len(rows)))]
        trial = copy.deepcopy(self.twin)
        num_grown = trial.grow_all(rows)
        assert self.manager.budget().try_grow_each_by_one(np.array(rows, np.int32)) == num_grown
        assert self.manager.grow_each_by_one(np.array(rows, np.int32)) == (num_grown == len(rows))
        if num_grown == len(rows):
            self.twin = trial

    @precondition(lambda self: not self.copies_in)  # a step shrinks before it restores
    @rule(row=rows, kept_ratio=st.floats(0, 1), checkpoint=st.booleans())
    def shrink(self, row: Row, kept_ratio: float, checkpoint: bool) -> None:
        num_kept = int(kept_ratio * self.manager.num_held(row))
        copies = self.manager.shrink(row, num_kept, checkpoint)
        assert len(copies) == self.twin.shrink(row, num_kept, checkpoint)
        self.copies_out.append(copies)
        self.written[row] = min(self.written[row], num_kept)

    @rule(row=rows, num_slots=st.integers(1, 12))
    def restore(self, row: Row, num_slots: int) -> None:
        num_slots = min(num_slots, self.manager.num_restorable(row), self.twin.max_growth(row, Side.HEAD))
        if not num_slots or self.written[row] < self.manager.num_held(row):
            return
        self.copies_in.append(self.manager.restore(row, num_slots))
        self.twin.restore(row, num_slots)
        self.written[row] += num_slots

    @rule(row=rows)
    def discard_copies(self, row: Row) -> None:
        self.manager.discard_copies(row)
        self.twin.discard_copies(row)

    @rule()
    def execute(self) -> None:
        for copies in self.copies_out:
            self.host[copies.host_slots] = self.device[copies.device_slots]
        for copies in self.copies_in:
            self.device[copies.device_slots] = self.host[copies.host_slots]
        for row in self.twin.rows:
            for position, slot in enumerate(slots_of(self.manager, Row(row))):
                if position >= self.written[Row(row)]:
                    self.device[slot] = self._value(Row(row), position)
        for row in self.twin.rows:
            values = [self._value(Row(row), position) for position in range(self.manager.num_held(Row(row)))]
            assert self.device[slots_of(self.manager, Row(row))].tolist() == values
            self.written[Row(row)] = len(values)
        self.copies_out, self.copies_in = [], []
        self.manager.begin_step()
        self.twin.begin_step()

    # What a policy asks

    @rule(row=rows)
    def ask_boundaries(self, row: Row) -> None:
        assert self.manager.budget().tail_boundaries(row) == self.twin.boundaries(row)

    @rule(row=rows, side=SIDES)
    def ask_growth(self, row: Row, side: Side) -> None:
        budget = self.manager.budget()
        assert budget.max_growth(row, side) == self.twin.max_growth(row, side)
        assert budget.max_growth(None, side) == self.twin.max_growth(None, side)

    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        """Try a whole plan on a budget; neither it nor its failures move anything in the manager."""
        budget, trial = self.manager.budget(), copy.deepcopy(self.twin)
        for index in range(data.draw(st.integers(1, 5))):
            row = data.draw(st.sampled_from([None, *self.twin.rows]))
            num_slots, side = data.draw(st.integers(0, 9)), data.draw(SIDES)
            if row is not None and num_slots == 0:
                num_kept = len(trial.rows[row].slots) // 2
                budget.shrink(Row(row), num_kept)
                trial.shrink(row, num_kept, checkpoint=False)
            elif row is not None and num_slots == 1:
                rows = data.draw(st.permutations(list(self.twin.rows)))
                assert budget.try_grow_each_by_one(np.array(rows, np.int32)) == trial.grow_all(rows)
            else:
                known = -1 - index if row is None else row
                if row is None:
                    trial.open(known, side)
                assert budget.try_grow(None if row is None else Row(row), side, num_slots) == trial.grow(
                    known, num_slots
                )
            assert all(budget.num_held(Row(row)) == len(trial.rows[row].slots) for row in self.twin.rows)

    # What always holds

    @invariant()
    def agrees_with_twin(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.manager.check_invariants()
        usage = self.manager.usage()
        num_held = sum(len(holder.slots) for holder in self.twin.rows.values())
        assert usage.num_free_slots == self.manager.config.num_slots - num_held
        assert usage.num_host_slots_used == self.manager.config.num_host_slots - self.twin.num_host_free()
        for row, holder in self.twin.rows.items():
            assert slots_of(self.manager, Row(row)) == holder.slots
            assert self.manager.num_restorable(Row(row)) == self.twin.copies.get(row, 0)

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for row in list(self.twin.rows):
            self.close(Row(row))
        self.manager.begin_step()
        self.manager.check_invariants()
        usage, config = self.manager.usage(), self.manager.config
        assert (usage.num_free_slots, usage.num_free_blocks) == (config.num_slots, config.num_blocks)
        assert usage.num_host_slots_used == 0

    def _num_left(self, row: Row) -> int:
        return self.manager.config.max_seq_len - self.manager.num_held(row)

    def _value(self, row: Row, position: int) -> int:
        """Return what stands for the K and V of a position: different for every holder there ever was."""
        return self.names[row] * 1_000 + position


TestKVMachine = KVMachine.TestCase
TestKVMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
