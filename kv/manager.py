"""KVCacheManager: which row holds which slots, on the device and in the host pool.

    open ──► grow … grow ──► shrink ──► restore, grow … ──► close, or leave_cached ─┐
      ▲                        │           ▲                                         │
      │                        └─ host pool ┘                                         │
      └─ borrow ◄──────────────────────── index ◄─────────────────────────────────────┘

The manager puts five parts together:

    kv/pool.py        how rows grow, shrink and are evicted
    kv/table.py       the slot of each position
    kv/checkpoint.py  copies in the host pool
    kv/prefixes.py    which tokens the rows hold
    kv/host_prefixes.py  evicted segments in the host pool

Blocks are shared in kv/block.py: `grow` gives a row room beside the row at the opposite end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kv.block import BASE, HEAD, HELD, INDEX_OF_SIDE, TAIL, Indices
from kv.budget import KVBudget
from kv.checkpoint import HostPool
from kv.host_prefixes import HostPrefixes, names_of
from kv.invariants import check_invariants
from kv.pool import Pool
from kv.prefix_log import PrefixEvent
from kv.prefixes import Prefix, PrefixIndex
from kv.table import SlotTable
from kv.types import NO_COPIES, KVConfig, KVUsage, Row, Side, SlotCopy

_NOTHING: Mapping[Row, int] = MappingProxyType({})
_NO_PREFIXES: Mapping[Row, Prefix] = MappingProxyType({})


class Adopted(NamedTuple):
    """The copies of an adopted budget, device to host and host to device.

    `copies_out` has an entry for each row that was cut. It is empty for a row that is computed again.
    """

    copies_out: Mapping[Row, SlotCopy]
    copies_in: list[SlotCopy]


class KVCacheManager:
    """The cache's bookkeeping. The engine's thread owns it. The same calls give the same slots.

    A step is `begin_step`, then changes. The executor makes the copies out (of `shrink`), then the copies in (of
    `restore`), then it computes. Shrink before you restore: a restored position cannot be copied out in that step.
    """

    def __init__(self, config: KVConfig) -> None:
        """Make an empty cache."""
        self.config = config
        self._pool = Pool(config)
        self._table = SlotTable(config.max_seq_len)
        self._host = HostPool(config.num_host_slots)
        self._host_prefixes = HostPrefixes(config.num_host_slots, config.num_host_prefix_slots, config.block_size)
        self._index = PrefixIndex(config.block_size)
        self._num_changes = 0
        self._borrowed_cached = 0, 0  # the change it was counted at, and the count

    @property
    def slot_table(self) -> NDArray[np.int32]:
        """int32 [num_rows, max_seq_len]. Read it anew each step: added rows replace the array."""
        return self._table.slots

    def begin_step(self) -> None:
        """Take the last step as done: its copies are made, and the positions it grew are computed.

        Call it once before a step's changes. Until then no host slot of that step's copies is used again, and no
        position of that step is checkpointed.
        """
        self._host.begin_step()
        self._host_prefixes.begin_step()
        self._pool.begin_step()

    def open(self, side: Side) -> Row:
        """Return a new row that fills from `side` and holds nothing."""
        self._num_changes += 1
        row = self._pool.open_row(INDEX_OF_SIDE[side])
        self._fit_rows()
        return Row(row)

    def close(self, row: Row) -> None:
        """Free the row, all its slots and its copies on the host. Positions that others borrow stay cached."""
        self.close_each([row])

    def close_each(self, rows: Sequence[Row]) -> None:
        """Do `close` for each of `rows`, which are distinct."""
        for row in rows:
            self._check_open(row)
            self._leave_cached(row, 0)

    # Prefixes

    def find(self, prefix: Prefix) -> int:
        """Return how many leading tokens of `prefix` a new row could borrow. The last token is always computed."""
        num_found = self._index.find(prefix)
        return num_found if num_found < prefix.num_tokens else prefix.num_tokens - 1

    def borrow(self, row: Row, prefix: Prefix) -> int:
        """Let `row` begin with the positions of `prefix` that it can borrow. Return how many. It must hold nothing."""
        self._check_open(row)
        num_slots = self.find(prefix)
        if num_slots:
            self._num_changes += 1
            self._pool.borrow(row, prefix.lenders[0], num_slots)
            self._table.write_from(self._pool, row, 0)
            self._host.drop(row)
        return num_slots

    def keep_longer(self, prefix: Prefix, side: Side) -> int:
        """Evict what a new row on `side` could borrow of `prefix` after all that was used before. Return how much."""
        num_slots = self.find(prefix)
        if num_slots:
            self._num_changes += 1
            self._pool.use(prefix.lenders[0], INDEX_OF_SIDE[side])
        return num_slots

    def num_on_host(self, prefix: Prefix, start: int) -> int:
        """Return how many tokens of `prefix` from `start` on the host has, for a row that begins with those before."""
        return self._host_prefixes.num_found(prefix, start)

    def restore_prefix(self, row: Row, prefix: Prefix, num_slots: int) -> SlotCopy:
        """Grow by `num_slots` tokens of `prefix` that are on the host. Return the host-to-device copies."""
        start = self.num_held(row)
        host_slots = self._host_prefixes.take(prefix, start, num_slots)  # before the growth evicts
        has_room = self._append(row, num_slots)
        assert has_room, f"row {row}: no room to restore {num_slots} positions"
        self._host.drop(row)
        return self._copies_to(row, start, host_slots)

    def take_prefix_copies(self) -> SlotCopy:
        """Return the device-to-host copies of segments evicted since the last call. A step makes them first."""
        return self._host_prefixes.take_copies()

    def discard_prefix_copies(self) -> None:
        """Free the host's slots of the copies taken last, after the step that was to make them failed."""
        self._host_prefixes.discard_copies()

    def num_borrowed(self, row: Row) -> int:
        """Return how many leading positions `row` borrows."""
        return self._pool.rows.item(BASE, row)

    def lend(self, row: Row, prefix: Prefix, num_tokens: int) -> None:
        """Let others borrow the first `num_tokens` positions of `row`, which hold the tokens of `prefix`.

        Earlier steps must have computed them, and no copy into their slots may be outstanding.
        """
        rows = self._pool.rows
        num_held = rows.item(HELD, row)
        assert num_tokens <= num_held, f"row {row}: lends {num_tokens} of {num_held} positions"
        self._index.add(row, prefix, rows.item(BASE, row), num_tokens)

    def leave_cached(self, row: Row, prefix: Prefix, num_tokens: int) -> None:
        """Close `row`, but let others borrow its first `num_tokens` positions (see `lend`) until they are evicted.

        Where another row lends the same tokens, only those positions stay that others borrow already.
        """
        self._check_open(row)
        self.lend(row, prefix, num_tokens)
        size = self._index.block_size
        self._leave_cached(row, 0 if self._index.is_double(row) else num_tokens // size * size)

    def watch_prefixes(self) -> list[PrefixEvent]:
        """Record from now on which prefixes can be borrowed, and which no longer. Return an event for each of now."""
        return self._index.watch()

    def unwatch_prefixes(self) -> None:
        """Stop the record of prefixes."""
        self._index.unwatch()

    def take_prefix_events(self) -> list[PrefixEvent]:
        """Return the events since the last call, in order. Empty unless `watch_prefixes` was called."""
        return self._index.take_events()

    def evict_all(self) -> None:
        """Free all cached positions that no request borrows."""
        self._num_changes += 1
        self._pool.evict(None, HEAD)
        self._note_losses()

    def keep_free(self, least: int, enough: int) -> None:
        """Where fewer than `least` blocks are free, evict until `enough` are, or until nothing is left to evict.

        One eviction of many blocks costs less than many of one, and growth into a free block costs least.
        """
        if self._pool.num_free_blocks < least and self._pool.num_cached:
            self._num_changes += 1
            self._pool.evict(None, HEAD, 0, enough)
            self._note_losses()

    @property
    def num_evicted_slots(self) -> int:
        """Slots evicted so far."""
        return self._pool.num_evicted

    @property
    def num_borrowed_cached(self) -> int:
        """Slots of cached rows that requests borrow. They cannot be evicted. Counted once between two changes."""
        if self._borrowed_cached[0] != self._num_changes:
            self._borrowed_cached = self._num_changes, self._pool.num_borrowed_cached()
        return self._borrowed_cached[1]

    @property
    def held(self) -> NDArray[np.int64]:
        """int64 [num_rows]: the number of positions of each row that have a slot. Do not write to it."""
        return self._pool.held

    def num_held(self, row: Row) -> int:
        """Return the number of positions of `row` that have a slot."""
        return self._pool.held.item(row)

    def grow(self, row: Row, num_slots: int) -> bool:
        """Append slots for `num_slots` more positions. Return False, with nothing changed, when there is no room.

        The host pool drops its copies of these positions: they are computed again.
        """
        if not self._append(row, num_slots):
            return False
        self._host.forget(row, num_slots)
        return True

    def grow_each_by_one(
        self, rows: Sequence[Row] | NDArray[np.int32] | NDArray[np.int64], has_room: bool = False
    ) -> bool:
        """Grow each of `rows` by one slot, in order: all of them, or none and return False. `rows` are distinct.

        has_room: `most_new_blocks` are free, as the caller has seen.
        """
        rows = np.ascontiguousarray(rows, np.intp)
        if not has_room and self._pool.most_new_blocks(rows) > self._pool.num_free_blocks:
            budget = self.budget()
            if budget.try_grow_each_by_one(rows) < len(rows):
                return False
            self.adopt(budget)
            return True
        self._num_changes += 1
        self._pool.grow_each_by_one(rows)
        self._note_one_more_of_each(rows)
        return True

    def most_new_blocks(self, rows: Indices) -> int:
        """Return how many free blocks `rows` can take if each grows by one slot."""
        return self._pool.most_new_blocks(rows)

    def adopt(
        self,
        budget: KVBudget,
        checkpoints: Collection[Row] = (),
        restores: Mapping[Row, int] = _NOTHING,
        prefixes: Mapping[Row, Prefix] = _NO_PREFIXES,
    ) -> Adopted:
        """Make the growth and the cuts of `budget` real. The manager must not have changed since `budget()`.

        Rows in `checkpoints` keep copies of their lost positions on the host. The first `restores[row]` positions by
        which a row grew come back from the host. Those of new rows, which `prefixes` names, are evicted segments. The
        result is that of `shrink`, then `restore` or `restore_prefix`, then `grow`.
        """
        assert budget.version == self._num_changes, "the cache has changed since this budget was made"
        self._num_changes += 1
        copies_out = {
            row: self._give_up(row, *self._pool.extent(row), num_kept, row in checkpoints)
            for row, num_kept in budget.cuts.items()
        }
        self._pool = budget.settled_pool()
        found = {
            row: self._host_prefixes.take(prefix, self.num_borrowed(row), restores[row])
            for row, prefix in prefixes.items()
        }  # before evicted segments go there
        self._note_losses()  # reads slots of rows that the table is about to lose
        self._fit_rows()
        copies_in = [
            self._bring_in(row, start, restores.get(row, 0), found.get(row)) for row, start in budget.grown.items()
        ]
        if len(decodes := budget.decodes()):
            self._note_one_more_of_each(decodes)
        return Adopted(copies_out, [copy for copy in copies_in if len(copy)])

    def shrink(self, row: Row, num_kept: int, checkpoint: bool) -> SlotCopy:
        """Give up positions [num_kept, held), but none that others borrow. Return the device-to-host copies.

        With `checkpoint` the host pool keeps as many of them as it has room for, from the new end of the row on. The
        executor makes the copies before it overwrites a slot.
        """
        self._check_open(row)
        self._num_changes += 1
        before = self._pool.extent(row)
        copies = self._give_up(row, *before, self._pool.shrink(row, num_kept), checkpoint)
        self._note_losses()
        return copies

    def num_restorable(self, row: Row) -> int:
        """Return how many positions directly after the held ones the host pool has.

        Read it after the step's shrinks: another row's checkpoint may take the room.
        """
        return self._host.num_copies(row)

    def restore(self, row: Row, num_slots: int) -> SlotCopy:
        """Grow by `num_slots` restorable positions. Return the host-to-device copies. Asserts that there is room."""
        assert 0 < num_slots <= self.num_restorable(row), (
            f"row {row}: {num_slots} positions to restore, {self.num_restorable(row)} on the host"
        )
        num_held = self.num_held(row)
        has_room = self._append(row, num_slots)
        assert has_room, f"row {row}: no room to restore {num_slots} positions"
        return self._copy_in(row, num_held, num_slots)

    def discard_copies(self, row: Row) -> None:
        """Free the host pool's copies of `row`, after the step that was to make them failed."""
        self._check_open(row)
        self._host.drop(row)

    def budget(self) -> KVBudget:
        """Return a budget of the manager's present state. It is valid until the manager's next change."""
        return KVBudget(self._pool, self._num_changes)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no row holds. Unlike `usage`, it costs no count."""
        return self._pool.num_free_blocks

    def usage(self) -> KVUsage:
        """Count slots and blocks by state."""
        pool, config = self._pool, self.config
        num_held_blocks = config.num_blocks - pool.num_free_blocks
        num_head_blocks, num_tail_blocks = pool.num_held_blocks(HEAD), pool.num_held_blocks(TAIL)
        num_head_slots, num_tail_slots = pool.num_held_slots(HEAD), pool.num_held_slots(TAIL)
        num_cached_slots = (
            sum(pool.num_held_slots(side, is_cached=True) for side in (HEAD, TAIL)) if pool.num_cached else 0
        )
        return KVUsage(
            num_free_slots=config.num_slots - num_head_slots - num_tail_slots - num_cached_slots,
            num_cached_slots=num_cached_slots,
            num_head_slots=num_head_slots,
            num_tail_slots=num_tail_slots,
            num_free_blocks=pool.num_free_blocks,
            num_head_blocks=num_head_blocks,
            num_tail_blocks=num_tail_blocks,
            num_shared_blocks=num_head_blocks + num_tail_blocks - num_held_blocks,
            num_host_slots_used=self._host.num_used,
            num_host_prefix_slots_used=self._host_prefixes.num_used,
        )

    def block_fills(self) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Return two copies, int16 [num_blocks]: the slots of each block that requests hold as heads, and as tails."""
        fills = self._pool.fills() - self._pool.cached_fills()
        return fills[HEAD], fills[TAIL]

    def cached_fills(self) -> NDArray[np.int16]:
        """Return int16 [num_blocks]: how many slots of each block are cached."""
        heads, tails = self._pool.cached_fills()
        cached: NDArray[np.int16] = heads + tails
        return cached

    def check_invariants(self) -> None:
        """Assert the invariants between any two calls (see kv/invariants.py). It costs O(slots)."""
        check_invariants(self.config, self._pool, self._table, self._host)
        self._index.check_invariants(self._pool.held.tolist())
        self._host_prefixes.check_invariants()
        if self._borrowed_cached[0] == self._num_changes:
            num_slots = self._pool.num_borrowed_cached()
            assert self._borrowed_cached[1] == num_slots, "a change was not counted"

    def _append(self, row: Row, num_slots: int) -> bool:
        self._check_open(row)
        start = self.num_held(row)
        assert 0 <= num_slots <= self.config.max_seq_len - start, (
            f"row {row}: {start} + {num_slots} positions exceed max_seq_len {self.config.max_seq_len}"
        )
        self._num_changes += 1
        if not self._pool.grow(row, num_slots):
            return False
        self._note_losses()
        if num_slots:
            self._table.write_from(self._pool, row, start)
        return True

    def _note_one_more_of_each(self, rows: Indices) -> None:
        """Record that each of `rows` grew by one position, which is computed anew."""
        self._table.write_last(self._pool, rows)
        self._host.forget_first_of_each(rows)

    def _bring_in(self, row: Row, start: int, num_restored: int, found: NDArray[np.int32] | None) -> SlotCopy:
        """Record that `row` grew from `start` on. Its first `num_restored` new positions come from the host.

        found: host slots of evicted segments, which follow what the row borrows.
        """
        self._table.write_from(self._pool, row, start)
        if found is not None:
            return self._copies_to(row, self.num_borrowed(row), found)
        copies = self._copy_in(row, start, num_restored) if num_restored else NO_COPIES
        self._host.forget(row, self.num_held(row) - start - num_restored)
        return copies

    def _copy_in(self, row: Row, start: int, num_slots: int) -> SlotCopy:
        """Return the host-to-device copies of `num_slots` positions from `start` on. The table has their slots."""
        return self._copies_to(row, start, self._host.take(row, num_slots))

    def _copies_to(self, row: Row, start: int, host_slots: NDArray[np.int32]) -> SlotCopy:
        return SlotCopy(self.slot_table[row, start : start + len(host_slots)].copy(), host_slots)

    def _give_up(self, row: Row, num_held: int, num_written: int, num_kept: int, checkpoint: bool) -> SlotCopy:
        """Do the host's part of `shrink`: save the lost positions there, or drop the row's copies."""
        if num_kept == num_held:
            return NO_COPIES
        if not checkpoint or num_written < num_held:  # a gap would lie between the row and its copies
            self._host.drop(row)
        if not checkpoint or num_written <= num_kept:
            return NO_COPIES
        host_slots = self._host.save(row, num_written - num_kept)
        return SlotCopy(self.slot_table[row, num_kept : num_kept + len(host_slots)].copy(), host_slots)

    def _leave_cached(self, row: Row, num_kept: int) -> None:
        """Close the row. Keep its first `num_kept` positions cached, and all that others borrow."""
        self._num_changes += 1
        self._host.drop(row)
        self._index.cut(row, self._pool.leave_cached(row, num_kept))

    def _note_losses(self) -> None:
        """Tell the index which positions rows lost. Only then may the rows that the pool closed be used again."""
        for row, num_kept, is_rt_evicted in self._pool.losses:
            if is_rt_evicted and self._host_prefixes.num_segments:
                self._save_prefix(row, num_kept)
            self._index.cut(row, num_kept)
        self._pool.losses.clear()

    def _save_prefix(self, row: Row, num_kept: int) -> None:
        """Copy to the host what nobody lends any more. The table still has the slots of evicted positions."""
        lost, size = self._index.lost_by(row, num_kept), self.config.block_size
        names, slots = names_of(lost.salt, lost.tokens, size), self.slot_table[row]
        device_slots = [slots[index * size : (index + 1) * size].copy() for index in lost.segments]
        self._host_prefixes.save([names[index] for index in lost.segments], device_slots)

    def _fit_rows(self) -> None:
        if self._pool.num_rows > len(self.slot_table):
            self._table.add_rows(self._pool.num_rows, int(self._pool.held.max()))

    def _check_open(self, row: Row) -> None:
        assert self._pool.is_open(row), f"row {row} is not open"
