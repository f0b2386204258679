"""A step as flat arrays: every new token of every sequence in one packed row, and where its K and V go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.core.plan import Sequenced, StepBatch


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens of one sequence in the packed row: `[offset, offset + num_new)`, at positions from `start` on."""

    offset: int
    num_new: int
    start: int
    row: int

    @property
    def num_context(self) -> int:
        """Positions that the segment's last token attends to, itself included."""
        return self.start + self.num_new


@dataclass(frozen=True, slots=True)
class StepInputs:
    """N new tokens of S sequences. All arrays are contiguous.

    token_ids, positions, slots: int64 [N]. rows: int32 [N], the slot table's row of each token. sampled: indices of the
    sequences that reach their last known token. sampled_tokens: int64 [len(sampled)], their last tokens in the row.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    rows: NDArray[np.int32]
    segments: Sequence[Segment]
    sampled: Sequence[int]
    sampled_tokens: NDArray[np.int64]
    slot_table: NDArray[np.int32]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def pack(batch: StepBatch) -> StepInputs:
    """Lay the batch out; asserts that every sequence holds a row and computes tokens that are known."""
    segments = list(_segments(batch))
    positions = np.concatenate([np.arange(s.start, s.num_context, dtype=np.int64) for s in segments])
    rows = np.repeat(np.array([s.row for s in segments], np.int32), [s.num_new for s in segments])
    known = [s.token_ids[g.start : g.num_context] for s, g in zip(batch.sequences, segments, strict=True)]
    sampled = [i for i, g in enumerate(segments) if g.num_context == len(batch.sequences[i].token_ids)]
    return StepInputs(
        token_ids=np.array([token_id for part in known for token_id in part], np.int64),
        positions=positions,
        slots=batch.slot_table[rows, positions].astype(np.int64),
        rows=rows,
        segments=segments,
        sampled=sampled,
        sampled_tokens=np.array([segments[i].offset + segments[i].num_new - 1 for i in sampled], np.int64),
        slot_table=batch.slot_table,
    )


def _segments(batch: StepBatch) -> list[Segment]:
    segments: list[Segment] = []
    offset = 0
    for sequence, num_new in zip(batch.sequences, batch.num_new_tokens, strict=True):
        segments.append(Segment(offset, num_new, sequence.num_computed, _row_of(sequence, num_new)))
        offset += num_new
    return segments


def _row_of(sequence: Sequenced, num_new: int) -> int:
    assert sequence.row is not None, f"request {sequence.request_id!r} is in a step but holds no slots"
    assert 0 < num_new <= len(sequence.token_ids) - sequence.num_computed, (
        f"request {sequence.request_id!r}: {num_new} new tokens from {sequence.num_computed} of "
        f"{len(sequence.token_ids)} known"
    )
    return sequence.row
