"""Attention over slot tables: the interface, and the plain torch implementation that runs everywhere.

N tokens, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from backend.executors.torch_engine.inputs import Segment, StepInputs
from backend.executors.torch_engine.kv_pool import KVPool

# The paged kernel: a tile of larger heads does not fit every device's shared memory, and older devices lack bf16.


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What differs between models and between a model's layers. `window` None: a token sees all before it."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class SlotAttention(Protocol):
    """Attends from a step's tokens to the K and V of their sequences in the pool."""

    def begin(self, inputs: StepInputs) -> None:
        """Prepare for a step; called once before its layers."""
        ...

    def attend(self, queries: torch.Tensor, layer_index: int, shape: AttentionShape) -> torch.Tensor:
        """Return [N, H, D] for queries [N, H, D], the step's own tokens included; valid until the next call."""
        ...


class SegmentAttention(Protocol):
    """Attends from some of a step's sequences only; the others' rows stay as they are."""

    def begin_segments(self, inputs: StepInputs, segments: Sequence[Segment]) -> None:
        """Prepare for some of a step's segments."""
        ...

    def attend_into(self, out: torch.Tensor, queries: torch.Tensor, layer_index: int, shape: AttentionShape) -> None:
        """Write the rows of `out` [N, H, D] that belong to the prepared segments."""
        ...


class TorchAttention:
    """Copies each sequence's K and V together and calls torch's attention: correct everywhere, fast for long chunks."""

    def __init__(self, pool: KVPool, dtype: torch.dtype | None = None) -> None:
        """`dtype`: of the computation, by default the pool's. Emulated bf16 is slow and rounds more often."""
        self._pool = pool
        self._dtype = dtype or pool.shape.dtype
        self._segments: Sequence[Segment] = ()
        self._slots: list[torch.Tensor] = []
        self._masks: dict[AttentionShape, list[torch.Tensor | None]] = {}

    def begin(self, inputs: StepInputs) -> None:
        self.begin_segments(inputs, inputs.segments)

    def begin_segments(self, inputs: StepInputs, segments: Sequence[Segment]) -> None:
        """Prepare for some of a step's segments only."""
        device = self._pool.storage.device
        self._segments = segments
        self._slots = [torch.from_numpy(inputs.slot_table[s.row, : s.num_context]).to(device) for s in segments]
        self._masks = {}

    def attend(self, queries: torch.Tensor, layer_index: int, shape: AttentionShape) -> torch.Tensor:
        out = torch.empty_like(queries)
        self.attend_into(out, queries, layer_index, shape)
        return out

    def attend_into(self, out: torch.Tensor, queries: torch.Tensor, layer_index: int, shape: AttentionShape) -> None:
        """Write the rows of `out` [N, H, D] that belong to the prepared segments."""
        storage = self._pool.storage[layer_index]
        if shape not in self._masks:
            self._masks[shape] = [_mask(s, shape, queries.device) for s in self._segments]
        for segment, slots, mask in zip(self._segments, self._slots, self._masks[shape], strict=True):
            span = slice(segment.offset, segment.offset + segment.num_new)
            keys, values = storage[slots].to(self._dtype).unbind(1)
            out[span] = attend_segment(queries[span].to(self._dtype), keys, values, mask, shape)


def attend_segment(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, shape: AttentionShape
) -> torch.Tensor:
    """Return [n, H, D] for the queries [n, H, D] of one sequence over its own K and V [context, G, D].

    Without a mask, the i-th of several queries sees the first i keys; torch then skips the hidden ones.
    """
    is_causal = mask is None and len(queries) > 1
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (queries, keys, values))
    if shape.softcap is None:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=shape.scale, enable_gqa=True
        )
    else:
        out = _softcapped_attention(q, k, v, mask, shape)
    return out[0].transpose(0, 1)


def _mask(segment: Segment, shape: AttentionShape, device: torch.device) -> torch.Tensor | None:
    """Return bool [n, context], True where a token may look; None where `attend_segment` needs none."""
    has_window = shape.window is not None and segment.num_context > shape.window
    is_plain_triangle = segment.start == 0 and shape.softcap is None
    if not has_window and (segment.num_new == 1 or is_plain_triangle):
        return None
    queries = torch.arange(segment.start, segment.num_context, device=device)[:, None]
    keys = torch.arange(segment.num_context, device=device)[None, :]
    mask = keys <= queries
    return mask & (keys > queries - shape.window) if shape.window is not None else mask


def _softcapped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, shape: AttentionShape
) -> torch.Tensor:
    """Attention whose scores pass through `softcap * tanh(score / softcap)` first (Gemma 2).

    It is computed in float32: scores rounded to bf16 err by several percent once they are exponents.
    """
    assert shape.softcap is not None
    num_groups = q.shape[1] // k.shape[1]
    k, v = (tensor.float().repeat_interleave(num_groups, 1) for tensor in (k, v))
    scores = torch.tanh(q.float() @ k.transpose(2, 3) * (shape.scale / shape.softcap)) * shape.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).to(q.dtype)
