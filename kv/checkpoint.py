"""The host pool: copies of positions that preempted rows gave up. They come back without being computed again.

    positions of a row      0 ............ held ................. held + n
                            in device slots │ copies in host slots │ lost: recompute

A row's checkpoint is one run of positions that starts at its held length. A shrink extends the run at its start. A
restore takes it from its start. A full pool shortens it at its far end. No host slot that a copy of the current step
reads or writes is used again before the next step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kv.block import Indices

HostSlots = NDArray[np.int32]

_NO_SLOTS: HostSlots = np.empty(0, np.int32)


class _Checkpoint(NamedTuple):
    """Host slots by position, from the row's held length on, and the step that last copied into them."""

    slots: HostSlots
    step_index: int


class HostPool:
    """Host slots. Each is free, in a row's checkpoint, or in flight until the copies of this step have been made."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = np.arange(num_slots, dtype=np.int32)[::-1].copy()  # a stack: the first `_num_free` entries
        self._num_free = num_slots
        self._in_flight: list[HostSlots] = []
        self._checkpoints: dict[int, _Checkpoint] = {}  # by row, in the order of their last copies
        self._step_index = 0

    @property
    def num_used(self) -> int:
        """Slots that are not free."""
        return self.num_slots - self._num_free

    def num_copies(self, row: int) -> int:
        """Return the length of the row's checkpoint."""
        return len(self._slots_of(row))

    def rows(self) -> set[int]:
        """Return the rows that have a checkpoint."""
        return set(self._checkpoints)

    def begin_step(self) -> None:
        """Take the copies of the last step as made."""
        self._step_index += 1
        for slots in self._in_flight:
            self._push(slots)
        self._in_flight.clear()

    def save(self, row: int, num_positions: int) -> HostSlots:
        """Extend the row's checkpoint by `num_positions` at its start. Return the host slots, in order of position.

        A full pool shortens the oldest checkpoints first, at their far ends. Where that is not enough, the returned
        run is shorter, and it is the row's whole checkpoint.
        """
        self._drop_oldest(num_positions - self._num_free)
        slots = self._pop(min(num_positions, self._num_free))
        if len(slots) < num_positions:
            self.drop(row)
        if len(slots):
            self._checkpoints[row] = _Checkpoint(np.concatenate((slots, self._detach(row))), self._step_index)
        return slots

    def take(self, row: int, num_positions: int) -> HostSlots:
        """Remove the first `num_positions` of the row's checkpoint and return their slots, to be copied back."""
        slots = self._cut(row, slice(None, num_positions), slice(num_positions, None))
        self._in_flight.append(slots)
        return slots

    def forget(self, row: int, num_positions: int) -> None:
        """Remove up to `num_positions` from the start of the row's checkpoint: they are computed again."""
        if row in self._checkpoints:
            is_copying = self._is_copying(row)
            self._release(self._cut(row, slice(None, num_positions), slice(num_positions, None)), is_copying)

    def forget_first_of_each(self, rows: Indices) -> None:
        """Do `forget(row, 1)` for each of `rows`. Few of them have a checkpoint."""
        if self._checkpoints:
            computed = set(rows.tolist())
            for row in [row for row in self._checkpoints if row in computed]:
                self.forget(row, 1)

    def drop(self, row: int) -> None:
        """Remove the row's checkpoint."""
        if row not in self._checkpoints:
            return
        is_copying = self._is_copying(row)
        self._release(self._detach(row), is_copying)

    def check_invariants(self) -> None:
        """Assert that every slot is free, in one checkpoint, or in flight."""
        parts = [self._free[: self._num_free], *self._in_flight, *(copy.slots for copy in self._checkpoints.values())]
        uses = np.bincount(np.concatenate(parts), minlength=self.num_slots)
        assert len(uses) == self.num_slots, "a host slot is out of range"
        assert np.all(uses == 1), "a host slot is lost or has two uses"
        assert all(len(checkpoint.slots) for checkpoint in self._checkpoints.values()), "an empty checkpoint is kept"

    def _slots_of(self, row: int) -> HostSlots:
        checkpoint = self._checkpoints.get(row)
        return _NO_SLOTS if checkpoint is None else checkpoint.slots

    def _is_copying(self, row: int) -> bool:
        checkpoint = self._checkpoints.get(row)
        return checkpoint is not None and checkpoint.step_index == self._step_index

    def _detach(self, row: int) -> HostSlots:
        checkpoint = self._checkpoints.pop(row, None)
        return _NO_SLOTS if checkpoint is None else checkpoint.slots

    def _cut(self, row: int, removed: slice, kept: slice) -> HostSlots:
        """Split the row's checkpoint. Return the removed part. The order of the checkpoints stays."""
        slots, step_index = self._checkpoints[row]
        if len(slots[kept]):
            self._checkpoints[row] = _Checkpoint(slots[kept], step_index)
        else:
            del self._checkpoints[row]
        return slots[removed]

    def _drop_oldest(self, num_slots: int) -> None:
        """Shorten the oldest checkpoints by `num_slots` in total, but none that this step copies to."""
        for row in list(self._checkpoints):
            if num_slots <= 0 or self._is_copying(row):
                return
            num_left = max(self.num_copies(row) - num_slots, 0)
            dropped = self._cut(row, slice(num_left, None), slice(None, num_left))
            self._push(dropped)
            num_slots -= len(dropped)

    def _release(self, slots: HostSlots, is_copying: bool) -> None:
        if is_copying:
            self._in_flight.append(slots)
        else:
            self._push(slots)

    def _push(self, slots: HostSlots) -> None:
        self._free[self._num_free : self._num_free + len(slots)] = slots
        self._num_free += len(slots)

    def _pop(self, num_slots: int) -> HostSlots:
        self._num_free -= num_slots
        return self._free[self._num_free : self._num_free + num_slots].copy()
