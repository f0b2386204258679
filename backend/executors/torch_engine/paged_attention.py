"""Attention on a device as one kernel in the Triton language: a step's chunks and decodes in one launch, no gathering.

A program computes a tile: some tokens of one sequence, and of each the R query heads that share one key-value head. It
follows the slot table over blocks of keys, with an online softmax (FlashAttention, arXiv 2205.14135).

    tile's row       0       1             R-1     R       R+1
    (token, head)   (0, 0)  (0, 1)  ...  (0, R-1)  (1, 0)  (1, 1)  ...  rest: loaded as zeros, not stored

N tokens, H query heads, G key-value heads, R = H / G, D head size; S sequences, T tiles.
"""

# The kernel's body is Triton's language, not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from backend.executors.torch_engine.attention import AttentionShape
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.kv_pool import KVPool

# Rows of a tile and keys of a block. Tensor cores multiply 16 rows at least. At D = 256 a block of more keys would
# exceed the 99 KiB of shared memory of the smaller devices. Not tuned: never run on a GPU.
_FEW_ROWS, _MANY_ROWS, _KEYS = 16, 64, 32


@triton.jit(do_not_specialize=["table_width", "query_stride"])
def paged_attention(
    out,  # [N, H, D]
    queries,  # [N, H, D], `query_stride` elements from token to token
    pool,  # one layer [slot, 2, G, D]
    table,  # int32 [S, table_width]
    tiles,  # int32 [T, 4], see `_tiles`
    table_width,
    query_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,  # HEAD_SIZE, rounded up to a power of two
):
    tile = tiles + 4 * tl.program_id(0)
    first_token, num_tokens = tl.load(tile), tl.load(tile + 1)
    start, sequence = tl.load(tile + 2), tl.load(tile + 3)
    kv_head = tl.program_id(1)
    end = start + num_tokens

    rows, lanes = tl.arange(0, ROWS), tl.arange(0, LANES)
    token = tl.minimum(rows // GROUP, num_tokens - 1)
    column = (kv_head * GROUP + rows % GROUP)[:, None] * HEAD_SIZE + lanes[None, :]
    is_stored = (rows < num_tokens * GROUP)[:, None] & (lanes < HEAD_SIZE)[None, :]
    packed = (first_token + token).to(tl.int64)[:, None]
    q = tl.load(queries + packed * query_stride + column, mask=is_stored, other=0.0)
    position = (start + token)[:, None]

    # Finite, so that a row that has seen no key yet computes no inf - inf.
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, LANES], tl.float32)
    # Blocks begin at multiples of KEYS for every tile, and a block outside a row's view does not change the row.
    # A row's result therefore does not depend on its tile.
    first_key = 0
    if WINDOW is not None:
        first_key = tl.maximum(start - WINDOW + 1, 0) // KEYS * KEYS
    for block in range(first_key, end, KEYS):
        key = block + tl.arange(0, KEYS)
        slot = tl.load(table + sequence * table_width + key, mask=key < end, other=0).to(tl.int64)
        place = pool + slot[:, None] * (2 * NUM_KV_HEADS * HEAD_SIZE) + kv_head * HEAD_SIZE + lanes[None, :]
        is_loaded = (key < end)[:, None] & (lanes < HEAD_SIZE)[None, :]
        k = tl.load(place, mask=is_loaded, other=0.0)
        v = tl.load(place + NUM_KV_HEADS * HEAD_SIZE, mask=is_loaded, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE
        if SOFTCAP is not None:
            scores = SOFTCAP * (2 * tl.sigmoid(2 * scores / SOFTCAP) - 1)  # tanh
        is_seen = key[None, :] <= position
        if WINDOW is not None:
            is_seen = is_seen & (key[None, :] > position - WINDOW)
        scores = tl.where(is_seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - new_top[:, None])
        kept = tl.exp(top - new_top)
        total = total * kept + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * kept[:, None], input_precision="ieee")
        top = new_top
    result = (sums / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + packed * (NUM_KV_HEADS * GROUP * HEAD_SIZE) + column, result, mask=is_stored)


class PagedAttention:
    """`SlotAttention` by the kernel above; in float32 a token's result does not depend on its chunk."""

    def __init__(self, pool: KVPool, num_heads: int) -> None:
        self._pool = pool
        self._group = num_heads // pool.shape.num_kv_heads
        self._rows = _FEW_ROWS
        self._table = self._tiles = torch.empty(0, dtype=torch.int32)

    def begin(self, inputs: StepInputs) -> None:
        device = self._pool.storage.device
        self._rows = self._rows_for(max(segment.num_new for segment in inputs.segments))
        self._tiles = torch.from_numpy(_tiles(inputs, self._rows // self._group)).to(device)
        self._table = torch.from_numpy(_slots(inputs)).to(device)

    def attend(self, queries: torch.Tensor, layer_index: int, shape: AttentionShape) -> torch.Tensor:
        kv = self._pool.shape
        assert queries.stride()[1:] == (kv.head_size, 1), "a token's query heads must lie side by side"
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        tensors = (out, queries, self._pool.storage[layer_index], self._table, self._tiles)
        strides = (self._table.stride(0), queries.stride(0))
        paged_attention[(len(self._tiles), kv.num_kv_heads)](*tensors, *strides, **self.constants(shape))
        return out

    def constants(self, shape: AttentionShape) -> dict[str, int | float | None]:
        """Return the constants that the kernel is compiled for in this step."""
        kv = self._pool.shape
        return {
            "NUM_KV_HEADS": kv.num_kv_heads,
            "GROUP": self._group,
            "HEAD_SIZE": kv.head_size,
            "SCALE": shape.scale,
            "WINDOW": shape.window,
            "SOFTCAP": shape.softcap,
            "ROWS": self._rows,
            "KEYS": _KEYS,
            "LANES": max(16, triton.next_power_of_2(kv.head_size)),
        }

    def _rows_for(self, longest: int) -> int:
        """Return the rows of a step's tiles: always the same in float32, where another size could round otherwise."""
        fewest: int = max(_FEW_ROWS, triton.next_power_of_2(self._group))
        is_small = longest * self._group <= fewest or self._pool.shape.dtype is torch.float32
        return fewest if is_small else max(_MANY_ROWS, fewest)


def _tiles(inputs: StepInputs, tokens_per_tile: int) -> NDArray[np.int32]:
    """Return int32 [T, 4]: first token in the packed row, number of tokens, first position, row of the table."""
    tiles = [
        (segment.offset + first, min(tokens_per_tile, segment.num_new - first), segment.start + first, index)
        for index, segment in enumerate(inputs.segments)
        for first in range(0, segment.num_new, tokens_per_tile)
    ]
    return np.array(tiles, np.int32)


def _slots(inputs: StepInputs) -> NDArray[np.int32]:
    """Return int32 [S, longest context]: the slot table's rows of the step's sequences."""
    width = max(segment.num_context for segment in inputs.segments)
    return inputs.slot_table[[segment.row for segment in inputs.segments], :width]
