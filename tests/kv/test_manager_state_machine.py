"""Any sequence of calls leaves the manager as it leaves its twin, and K and V where the slot table says they are."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kv.types import KVConfig, Layout, Row, Side
from tests.kv.factories import configs
from tests.kv.side_by_side import BORROWING, Change, SideBySide

SIDES = st.sampled_from(Side)
ROWS = st.integers(0, 30)  # an index among the open rows, modulo their number


def has_rows(machine: KVMachine) -> bool:
    """Whether there is a row to do something with."""
    return bool(machine.both.rows)


class KVMachine(RuleBasedStateMachine):
    """Calls of a scheduler and questions of a policy, in any order that the manager's contract allows."""

    @initialize(config=configs(), holders=st.lists(st.tuples(SIDES, st.integers(0, 9)), max_size=8))
    def start(self, config: KVConfig, holders: list[tuple[Side, int]]) -> None:
        self.both = SideBySide(config)
        for side, num_slots in holders:
            self.both.grow(self.both.open(side), num_slots)
        self.both.execute()

    @rule(side=SIDES)
    def open(self, side: Side) -> None:
        self.both.open(side)

    @precondition(has_rows)
    @rule(indices=st.lists(ROWS, min_size=1, max_size=3))
    def close(self, indices: list[int]) -> None:
        self.both.close(*dict.fromkeys(map(self._row, indices)))

    @precondition(has_rows)
    @rule(index=ROWS, num_slots=st.integers(0, 12))
    def grow(self, index: int, num_slots: int) -> None:
        row = self._row(index)
        self.both.grow(row, min(num_slots, self.both.num_left(row)))

    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        rows = data.draw(st.permutations([row for row in self.both.rows if self.both.num_left(row)]))
        self.both.decode(rows[: data.draw(st.sampled_from([len(rows), len(rows) // 2, 1]))])

    @precondition(lambda self: self.both.rows and not self.both.copies_in)
    @rule(index=ROWS, num_given_up=st.integers(0, 12), checkpoint=st.booleans())
    def shrink(self, index: int, num_given_up: int, checkpoint: bool) -> None:
        row = self._row(index)
        self.both.shrink(row, max(self.both.manager.num_held(row) - num_given_up, 0), checkpoint)

    @precondition(has_rows)
    @rule(index=ROWS, max_slots=st.integers(1, 12))
    def restore(self, index: int, max_slots: int) -> None:
        self.both.restore(self._row(index), max_slots)

    @precondition(has_rows)
    @rule(index=ROWS, num_tokens=st.integers(1, 24))
    def borrow(self, index: int, num_tokens: int) -> None:
        row = self._row(index)
        if not self.both.manager.num_held(row):
            self.both.borrow(row, num_tokens)
            self.both.restore_prefix(row, num_tokens)

    @rule()
    def fail_step(self) -> None:
        self.both.fail_step()

    @precondition(has_rows)
    @rule(index=ROWS, num_tokens=st.integers(0, 24))
    def lend(self, index: int, num_tokens: int) -> None:
        row = self._row(index)
        self.both.lend(row, min(num_tokens, self.both.num_lendable(row)))

    @precondition(has_rows)
    @rule(index=ROWS)
    def leave_cached(self, index: int) -> None:
        row = self._row(index)
        self.both.leave_cached(row, self.both.num_lendable(row))

    @rule()
    def evict_all(self) -> None:
        self.both.evict_all()

    @rule(least=st.integers(1, 6), num_more=st.integers(0, 2))
    def keep_free(self, least: int, num_more: int) -> None:
        self.both.keep_free(least, least + num_more)

    @precondition(has_rows)
    @rule(index=ROWS, num_tokens=st.integers(1, 12), side=st.sampled_from(Side))
    def keep_longer(self, index: int, num_tokens: int, side: Side) -> None:
        self.both.keep_longer(self._row(index), num_tokens, side)

    @rule()
    def watch_anew(self) -> None:
        self.both.watch_anew()

    @precondition(has_rows)
    @rule(index=ROWS)
    def discard_copies(self, index: int) -> None:
        self.both.discard_copies(self._row(index))

    @rule()
    def execute(self) -> None:
        self.both.execute()

    @precondition(has_rows)
    @rule(index=ROWS, side=SIDES)
    def ask(self, index: int, side: Side) -> None:
        row, budget, twin = self._row(index), self.both.manager.budget(), self.both.twin
        assert budget.tail_boundaries(row) == twin.boundaries(row)
        assert budget.max_growth(row, side) == twin.max_growth(row, side)
        assert budget.max_growth(None, side) == twin.max_growth(None, side)

    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        """Try a whole plan on a budget; neither it nor its failures move anything in the manager."""
        budget, trial = self.both.manager.budget(), copy.deepcopy(self.both.twin)
        for index in range(data.draw(st.integers(1, 5))):
            row = data.draw(st.sampled_from([None, *self.both.rows]))
            num_slots, side = data.draw(st.integers(0, 9)), data.draw(SIDES)
            if row is None:
                trial.open(-1 - index, side)
                assert budget.try_grow(None, side, num_slots) == trial.grow(-1 - index, num_slots)
            elif num_slots == 0:
                num_kept = len(trial.rows[row].slots) // 2
                num_kept = budget.shrink(row, num_kept)
                trial.shrink(row, num_kept, checkpoint=False)
            elif num_slots == 1:
                rows = data.draw(st.permutations(self.both.rows))
                assert budget.try_grow_each_by_one(rows) == trial.grow_all(rows)
            else:
                assert budget.try_grow(row, side, num_slots) == trial.grow(row, num_slots)
        assert all(budget.num_held(row) == len(trial.rows[row].slots) for row in self.both.rows)

    @precondition(lambda self: not self.both.copies_in)
    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        """Make a plan real: rows are cut and grow, new ones open, in any order. A row is cut at most once,
        before it grows. It grows at most once."""
        changes: list[Change] = []
        for row in data.draw(st.permutations(self.both.rows)):
            num_held, kind = (
                self.both.manager.num_held(row),
                data.draw(st.sampled_from(["cut", "save", "none", "none"])),
            )
            if kind != "none":
                num_held = data.draw(st.integers(0, num_held))
                changes.append((kind, row, num_held))
            number = min(data.draw(st.integers(0, 9)), self.both.config.max_seq_len - num_held)
            changes += [("decode" if number == 1 else "grow", row, number)] if number else []
            opened = data.draw(st.sampled_from(["head", "tail", "none", "none", *BORROWING, "evict"]))
            changes += [(opened, row, number)] if opened != "none" else []
        self.both.adopt(changes)

    @invariant()
    def agrees_with_twin(self) -> None:
        if hasattr(self, "both"):
            self.both.check()

    def teardown(self) -> None:
        if hasattr(self, "both"):
            self.both.end()

    def _row(self, index: int) -> Row:
        return self.both.rows[index % len(self.both.rows)]


TestKVMachine = KVMachine.TestCase
TestKVMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def run_schedule(config: KVConfig, seed: int, num_steps: int) -> None:
    """Run steps as an engine makes them in a pool that is too small: reclaim, restore, prefill, decode, execute."""
    rng, both = np.random.default_rng(seed), SideBySide(config)
    for _ in range(num_steps):
        if len(both.rows) < 9 and rng.random() < 0.5:
            both.open(Side.HEAD if rng.random() < 0.5 else Side.TAIL)
        new_rows: dict[Row, int] = {}
        for row in both.rows:
            held = both.manager.num_held(row)
            if not held and rng.random() < 0.7:
                num_tokens = int(rng.integers(1, config.max_seq_len + 1))
                both.borrow(row, num_tokens)
                new_rows[row] = num_tokens
            elif not both.num_left(row) or rng.random() < 0.03:
                both.leave_cached(row, both.num_lendable(row)) if rng.random() < 0.8 else both.close(row)
            elif rng.random() < 0.1:
                both.lend(row, both.num_lendable(row))
            elif rng.random() < 0.15:
                both.shrink(row, int(rng.integers(0, held + 1)), checkpoint=rng.random() < 0.7)
        for row, num_tokens in new_rows.items():
            both.restore_prefix(row, num_tokens)
        for row in both.rows:
            if rng.random() < 0.3:
                both.restore(row, int(rng.integers(1, 9)))
            if rng.random() < 0.15:
                both.grow(row, min(int(rng.integers(0, 9)), both.num_left(row)))
        for row in both.rows:
            if rng.random() < 0.05:
                both.keep_longer(row, int(rng.integers(1, 30)), Side.HEAD if rng.random() < 0.5 else Side.TAIL)
        if rng.random() < 0.1:
            both.keep_free(least := int(rng.integers(1, 4)), least + int(rng.integers(0, 2)))
        decodes = [row for row in both.rows if both.num_left(row) and rng.random() < 0.8]
        rng.shuffle(decodes)
        num_grown = both.decode(decodes)
        if num_grown < len(decodes):
            both.decode(decodes[:num_grown])
        both.check()
        both.execute() if rng.random() < 0.98 else both.fail_step()
    both.end()


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("seed", range(12))
def test_an_engine_s_steps_in_a_pool_too_small_leave_both_alike(layout: Layout, seed: int) -> None:
    config = KVConfig(
        4 + seed % 8,
        1 + seed % 4,
        max_seq_len=24,
        num_host_slots=seed,
        layout=layout,
        evicts_by_class=seed % 3 > 0,
        num_host_prefix_slots=3 * seed,
    )
    run_schedule(config, seed, num_steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1_000))
def test_a_thousand_schedules_leave_both_alike(seed: int) -> None:
    layout = [*Layout, Layout.TWO_ENDED][seed % 4]
    config = KVConfig(
        3 + seed % 11,
        1 + seed % 5,
        max_seq_len=32,
        num_host_slots=seed % 23,
        layout=layout,
        evicts_by_class=seed % 3 > 0,
        num_host_prefix_slots=seed % 29,
    )
    run_schedule(config, seed, num_steps=60)
