"""The manager and its twin, told the same, with simulated memories under them.

The memories hold a known value for each position computed. Copies of a step are made in the executor's order. Every
held position is read back after the step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from kv.budget import KVBudget
from kv.manager import KVCacheManager
from kv.prefixes import Prefix
from kv.types import KVConfig, Row, Side, SlotCopy
from tests.kv.factories import slots_of
from tests.kv.prefix_watcher import PrefixWatcher
from tests.kv.twin import Twin

# "cut" or "save" to a length, "grow" by some, "decode", open a "head" or "tail", or one that borrows, or "evict" all
Change = tuple[str, Row, int]
SIDE_OF = {"head": Side.HEAD, "tail": Side.TAIL}
BORROWING = {"borrowing head": Side.HEAD, "borrowing tail": Side.TAIL}
NUM_STORIES = 6  # that rows tell: they begin alike, and go on differently from a few positions on
NUM_SALTS = 2


def tokens_of(story: int, num_tokens: int) -> list[int]:
    """Return the tokens of a story. The last two are alike."""
    return [7 if position < 3 * story else 10 + min(story, NUM_STORIES - 2) for position in range(num_tokens)]


class SideBySide:
    """Each method does the same to both and asserts that both answer alike."""

    def __init__(self, config: KVConfig) -> None:
        self.config = config
        self.manager, self.twin = KVCacheManager(config), Twin(config)
        self.watcher = PrefixWatcher(config.block_size, self.manager.watch_prefixes())
        self.device = np.full(config.num_slots, -1)
        self.host = np.full(config.num_host_slots + config.num_host_prefix_slots, -1)
        self.copies_out: list[SlotCopy] = []
        self.copies_in: list[SlotCopy] = []
        self.num_written: dict[Row, int] = {}  # leading positions that are not to be computed at the end of the step
        self.stories: dict[Row, tuple[int, int]] = {}  # salt and story
        self.num_opened = 0

    @property
    def rows(self) -> list[Row]:
        """The open rows, oldest first."""
        return [Row(row) for row, holder in self.twin.rows.items() if not holder.is_cached]

    def num_left(self, row: Row) -> int:
        """Positions that `row` may still grow by before it is as long as a row can be."""
        return self.config.max_seq_len - self.manager.num_held(row)

    def open(self, side: Side) -> Row:
        row = self.manager.open(side)
        self.twin.open(row, side)
        self._name(row)
        return row

    def borrow(self, row: Row, num_tokens: int) -> int:
        """Let a row that holds nothing begin with what others hold of its first `num_tokens`."""
        lender, num_slots = self.twin.find(*self._tokens(row, num_tokens))
        assert self.manager.borrow(row, self._prefix(row, num_tokens)) == num_slots
        if num_slots:
            self.twin.discard_copies(row)
            self.twin.borrow(row, lender, num_slots)
        self.num_written[row] = num_slots
        return num_slots

    def restore_prefix(self, row: Row, num_tokens: int) -> int:
        """Let a row that only borrows go on with what the host has of its first `num_tokens`, if there is room."""
        prefix, start = self._prefix(row, num_tokens), self.manager.num_held(row)
        num_slots = self.manager.num_on_host(prefix, start)
        assert num_slots == self.twin.num_on_host(*self._tokens(row, num_tokens), start)
        if num_slots and self.manager.budget().max_growth(row, Side.HEAD) >= num_slots:
            self.copies_in.append(self.manager.restore_prefix(row, prefix, num_slots))
            self.twin.take_prefix(*self._tokens(row, num_tokens), start, num_slots)
            assert self.twin.place(row, num_slots)
            self.twin.discard_copies(row)
            self.num_written[row] += num_slots
        return num_slots

    def num_lendable(self, row: Row) -> int:
        """Positions of `row` that were there before this step."""
        return min(self.twin.num_written[row], self.num_written[row])

    def lend(self, row: Row, num_tokens: int) -> None:
        self.manager.lend(row, self._prefix(row, num_tokens), num_tokens)
        self.twin.lend(row, *self._tokens(row, num_tokens))

    def leave_cached(self, row: Row, num_tokens: int) -> None:
        self.manager.leave_cached(row, self._prefix(row, num_tokens), num_tokens)
        self.twin.leave_cached(row, *self._tokens(row, num_tokens))

    def evict_all(self) -> None:
        self.manager.evict_all()
        self.twin.evict_all()

    def keep_longer(self, row: Row, num_tokens: int, side: Side) -> None:
        """Evict last what others hold of the first `num_tokens` of `row`, as if a request with them waited."""
        lender, num_slots = self.twin.find(*self._tokens(row, num_tokens))
        assert self.manager.keep_longer(self._prefix(row, num_tokens), side) == num_slots
        if num_slots:
            self.twin.use(lender, side)

    def keep_free(self, least: int, enough: int) -> None:
        self.manager.keep_free(least, enough)
        self.twin.keep_free(least, enough)

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
        self.num_written[row] = min(self.num_written[row], self.manager.num_held(row))

    def restore(self, row: Row, max_slots: int) -> None:
        """Restore up to `max_slots`, as far as there are copies and room, unless the row grew in this step."""
        num_slots = min(max_slots, self.manager.num_restorable(row), self.manager.budget().max_growth(row, Side.HEAD))
        if num_slots and self.num_written[row] == self.manager.num_held(row):
            self.copies_in.append(self.manager.restore(row, num_slots))
            self.twin.restore(row, num_slots)
            self.num_written[row] += num_slots

    def adopt(self, changes: Sequence[Change]) -> None:
        """Try a plan on a budget and adopt it. Of every second row that grows, the restorable slots come back.

        The twin assigns slots in the budget's order: promised decodes before promised openings. Its host pool changes
        as by all shrinks, then growth in order.
        """
        assert not self.copies_in, "a step shrinks before it restores"
        budget = self.manager.budget()
        num_saved = {}
        promised: list[Change] = []
        for kind, row, number in changes:
            if kind in ("cut", "save"):
                number = budget.shrink(row, number)
                self._place_all(promised)
                num_saved[row] = self.twin.shrink(row, number, kind == "save")
                self.num_written[row] = min(self.num_written[row], number)
                continue
            if kind in BORROWING or kind == "evict":
                self._try_sharing(budget, promised, (kind, row, number))
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

    def _try_sharing(self, budget: KVBudget, promised: list[Change], change: Change) -> None:
        """Evict all, or open a row that borrows what `row` could, and grow it."""
        kind, row, number = change
        if kind == "evict":
            budget.tail_boundaries(row)
            self._place_all(promised)
            self.twin.evict_all()
            return
        prefix, (salt, tokens) = self._prefix(row, self.config.max_seq_len), self._tokens(row, self.config.max_seq_len)
        num_borrowed = self.manager.find(prefix)
        reserved = budget.reserve(BORROWING[kind], prefix.lenders, num_borrowed) if num_borrowed else None
        if not num_borrowed:
            return
        self._place_all(promised)
        segment = (salt, *tokens[: -(-num_borrowed // self.config.block_size) * self.config.block_size])
        lender = next((row for row in prefix.lenders if row in self.twin.lenders[segment]), None)
        assert (reserved is None) == (lender is None)
        if reserved is None:
            return
        self.twin.open(reserved, BORROWING[kind])
        self.stories[reserved] = self.stories[row]
        self.twin.borrow(reserved, lender, num_borrowed)
        self.num_written[reserved] = num_borrowed
        number = min(number, self.config.max_seq_len - num_borrowed)
        has_grown = self.twin.place(reserved, number)
        assert budget.try_grow(reserved, BORROWING[kind], number) == has_grown
        if not has_grown:
            budget.release()
            self.twin.close(reserved)

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
        for copies in [*self.copies_out, self.manager.take_prefix_copies()]:
            self.host[copies.host_slots] = self.device[copies.device_slots]
        for copies in self.copies_in:
            self.device[copies.device_slots] = self.host[copies.host_slots]
        for row in self.rows:
            for position, slot in list(enumerate(slots_of(self.manager, row)))[self.num_written[row] :]:
                self.device[slot] = self._value(row, position)
        for row in map(Row, self.twin.rows):
            values = [self._value(row, position) for position in range(self.manager.num_held(row))]
            assert self.device[slots_of(self.manager, row)].tolist() == values
            self.num_written[row] = len(values)
        self.copies_out, self.copies_in, self.twin.unsaved = [], [], []
        self.manager.begin_step()
        self.twin.begin_step()

    def fail_step(self) -> None:
        """End a step that computed nothing: its rows are closed, and its copies out are not there."""
        self.manager.take_prefix_copies()
        self.manager.discard_prefix_copies()
        self.twin.discard_prefixes(self.twin.unsaved)
        self.twin.unsaved = []
        for row in self.rows:
            self.close(row)
        self.execute()

    def watch_anew(self) -> None:
        """Replace the watcher by another, which learns all that the former one knows."""
        known = self.watcher.known_after(self.manager.take_prefix_events())
        self.watcher = PrefixWatcher(self.config.block_size, self.manager.watch_prefixes())
        assert self.watcher.known == known

    def check(self) -> None:
        """Assert that both are in the same state, and the manager in a sound one."""
        self.manager.check_invariants()
        self.watcher.known_after(self.manager.take_prefix_events())
        lent = [(str(salt), tokens) for (salt, *tokens), lenders in self.twin.lenders.items() if lenders]
        self.watcher.check(lent)
        usage = self.manager.usage()
        owned = [(row.is_cached, len(row.slots) - row.base) for row in self.twin.rows.values()]
        assert usage.num_head_slots + usage.num_tail_slots == sum(num for is_cached, num in owned if not is_cached)
        assert usage.num_cached_slots == sum(num for is_cached, num in owned if is_cached)
        assert usage.num_host_slots_used == self.config.num_host_slots - self.twin.num_host_free()
        assert usage.num_host_prefix_slots_used == len(self.twin.on_host) * self.config.block_size
        for row in map(Row, self.twin.rows):
            assert slots_of(self.manager, row) == self.twin.rows[row].slots
            assert self.manager.num_borrowed(row) == self.twin.rows[row].base
            assert self.manager.num_restorable(row) == self.twin.copies.get(row, 0)

    def end(self) -> None:
        """Close all and assert that the cache is as it was at the start."""
        for row in self.rows:
            self.close(row)
        self.evict_all()
        assert not self.twin.rows
        self.manager.begin_step()
        self.manager.check_invariants()
        usage = self.manager.usage()
        assert (usage.num_free_slots, usage.num_free_blocks) == (self.config.num_slots, self.config.num_blocks)
        assert usage.num_host_slots_used == 0

    def _name(self, row: Row) -> None:
        self.num_written[row] = 0
        self.num_opened += 1
        self.stories[row] = (self.num_opened % NUM_SALTS, self.num_opened // NUM_SALTS % NUM_STORIES)

    def _value(self, row: Row, position: int) -> int:
        """Return what stands for the K and V of a position: it depends on all tokens up to there, and on the salt."""
        salt, tokens = self._tokens(row, position + 1)
        return hash((salt, *tokens))

    def _tokens(self, row: Row, num_tokens: int) -> tuple[int, list[int]]:
        salt, story = self.stories[row]
        return salt, tokens_of(story, num_tokens)

    def _prefix(self, row: Row, num_tokens: int) -> Prefix:
        salt, tokens = self._tokens(row, num_tokens)
        return Prefix(tokens, str(salt))
