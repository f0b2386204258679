"""The compiled kernel that attends from a chunk of a sequence's tokens at once: bf16 in and out, float32 between.

A tile of tokens reads each key and value once for all its rows (R query heads of each token): keys are turned into
columns, so that scores are multiply-adds over vectors of keys, without sums over lanes. The softmax is computed online
(Milakov and Gimelshein 2018; Dao et al. 2022): per row the highest score, the sum and the weighted values so far.
Names as in `kernels.py`.
"""

# the kernel's body is numba's language, not Python's.
# mypy: disable-error-code="attr-defined, arg-type, call-arg, type-var, unreachable, untyped-decorator, var-annotated"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray, njit

from backend.executors.torch_engine.kernel_cache import Kernel, compile_kernel
from backend.executors.torch_engine.kernels import (
    BOUNDS,
    NUM_FIELDS,
    NUM_KV_HEADS,
    OUT,
    POOL,
    POSITIONS,
    ROWS,
    SCALE,
    SCRATCH,
    SLOT_TABLE,
    SLOT_TABLE_WIDTH,
    SOFTCAP,
    TOKENS,
    WINDOW,
    X,
    cap_scores,
    thread_index,
)
from backend.executors.torch_engine.lanes import (
    add,
    add_heads,
    add_weighted,
    exp,
    f32_pointer,
    i16_pointer,
    i32_pointer,
    i64_pointer,
    load,
    max_lanes,
    maximum,
    multiply,
    splat,
    store,
    store_heads,
    subtract,
    sum_lanes,
    zero_heads,
)

TILE = 32  # tokens that share a pass over keys and values
_BLOCK = 128  # keys of a pass; its keys, values and scores stay in the second-level cache
_COLUMNS = 64  # keys whose scores are computed at once
_VECTOR = 16
_REGISTERS = 24  # of 16 lanes, for the sums of one inner loop; AVX-512 has 32
_SCORES = _BLOCK + _VECTOR  # a row of scores: masking may write a vector past its end
_LOWEST = np.float32(-1e30)  # not -inf: the difference of two of them is a number
_f32 = np.float32


@dataclass(frozen=True, slots=True)
class ChunkKernel:
    """The kernel for one head size and number of heads per key-value head; `scratch_size`: float32 per thread."""

    attend: Kernel
    scratch_size: int


def compile_chunk_kernel(head_size: int, heads_per_kv: int) -> ChunkKernel:
    """Compile, or read from the cache on disk."""
    rows_at_once = max(1, _REGISTERS * _VECTOR // max(head_size, _COLUMNS))
    max_rows = -(-TILE * heads_per_kv // rows_at_once) * rows_at_once
    scratch_size = max_rows * (2 * head_size + _SCORES + 2) + 2 * _BLOCK * head_size
    return ChunkKernel(_attend_chunks(head_size, heads_per_kv, rows_at_once, max_rows, scratch_size), scratch_size)


@njit(forceinline=True)
def _add_to_softmax(row: Any, scores: Any, sums: Any, totals: Any, width: Any) -> None:
    """Turn a block of scores into weights; rescale what the row has summed up to the highest score so far.

    sums: the row's highest score and sum of weights; totals: its weighted values, float32 [width].
    """
    state = carray(f32_pointer(sums + row * 8), (2,))
    highest = splat(state[0], _VECTOR)
    for j in range(0, _BLOCK, _VECTOR):
        highest = maximum(highest, load(scores + j * 4, _VECTOR, False))
    top = splat(max_lanes(highest), _VECTOR)
    total = splat(_f32(0.0), _VECTOR)
    for j in range(0, _BLOCK, _VECTOR):
        weight = exp(subtract(load(scores + j * 4, _VECTOR, False), top))
        store(scores + j * 4, weight, False)
        total = add(total, weight)
    rescale = exp(subtract(splat(state[0], _VECTOR), top))
    for d in range(0, width, _VECTOR):
        store(totals + d * 4, multiply(load(totals + d * 4, _VECTOR, False), rescale), False)
    state[1] = state[1] * max_lanes(rescale) + sum_lanes(total)
    state[0] = max_lanes(top)


def _attend_chunks(head_size: int, heads_per_kv: int, rows_at_once: int, max_rows: int, scratch_size: int) -> Kernel:
    """An item is a tile of a sequence's tokens and a key-value head. TOKENS: int64 [tiles, 2], first token and number.

    X: queries [N, H, D]; OUT: [N, H, D]. SCRATCH: float32 [scratch_size] per thread.
    """
    head_bytes = head_size * 2
    row_bytes, score_bytes = head_size * 4, _SCORES * 4
    column_bytes = _COLUMNS * 4

    def attend_chunks(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        numbers = carray(data, (NUM_FIELDS,), np.float64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        num_kv, window = block[NUM_KV_HEADS], block[WINDOW]
        token_bytes = num_kv * heads_per_kv * head_bytes
        scale, softcap = _f32(numbers[SCALE]), _f32(numbers[SOFTCAP])
        queries = block[SCRATCH] + thread * scratch_size * 4
        totals = queries + max_rows * row_bytes
        scores = totals + max_rows * row_bytes
        sums = scores + max_rows * score_bytes
        values = sums + max_rows * 8
        columns = values + _BLOCK * row_bytes  # keys, turned: [_BLOCK / _COLUMNS, D, _COLUMNS]
        turned = carray(i32_pointer(columns), (_BLOCK * head_size,))
        for item in range(bounds[thread], bounds[thread + 1]):
            tile = carray(i64_pointer(block[TOKENS] + item // num_kv * 16), (2,))
            token, num_rows = tile[0], tile[1] * heads_per_kv
            group_offset = token * token_bytes + item % num_kv * heads_per_kv * head_bytes
            position = carray(i64_pointer(block[POSITIONS]), (token + 1,))[token]
            end = position + tile[1]
            table_row = np.int64(carray(i32_pointer(block[ROWS]), (token + 1,))[token])
            slots = carray(i32_pointer(block[SLOT_TABLE] + table_row * block[SLOT_TABLE_WIDTH] * 4), (end,))
            stored_keys = block[POOL] + item % num_kv * head_bytes
            for row in range(num_rows):
                source = block[X] + group_offset + row // heads_per_kv * token_bytes + row % heads_per_kv * head_bytes
                query = multiply(load(source, head_size, True), splat(scale, head_size))
                store(queries + row * row_bytes, query, False)
                store(totals + row * row_bytes, splat(_f32(0.0), head_size), False)
                state = carray(f32_pointer(sums + row * 8), (2,))
                state[0], state[1] = _LOWEST, _f32(0.0)

            for start in range(max(np.int64(0), position + 1 - window) // _BLOCK * _BLOCK, end, _BLOCK):
                num_keys = min(np.int64(_BLOCK), end - start)
                for j in range(num_keys):
                    key = stored_keys + np.int64(slots[start + j]) * 2 * num_kv * head_bytes
                    halves = carray(i16_pointer(key), (head_size,))
                    offset = j // _COLUMNS * _COLUMNS * head_size + j % _COLUMNS
                    for d in range(head_size):
                        turned[offset + d * _COLUMNS] = np.int32(halves[d]) << 16  # bf16 is the upper half of float32
                    store(values + j * row_bytes, load(key + num_kv * head_bytes, head_size, True), False)

                for first in range(0, num_keys, _COLUMNS):
                    for row in range(0, num_rows, rows_at_once):
                        products = zero_heads(rows_at_once, _COLUMNS)
                        for d in range(head_size):
                            column = load(columns + first * row_bytes + d * column_bytes, _COLUMNS, False)
                            products = add_weighted(products, queries + row * row_bytes + d * 4, row_bytes, column)
                        store_heads(scores + row * score_bytes + first * 4, score_bytes, products, False)

                for row in range(num_rows):
                    row_scores = scores + row * score_bytes
                    last = position + row // heads_per_kv
                    if softcap > _f32(0.0):
                        cap_scores(row_scores, _BLOCK, softcap)
                    for j in range(max(np.int64(0), last + 1 - start), _BLOCK, _VECTOR):
                        store(row_scores + j * 4, splat(_f32(-np.inf), _VECTOR), False)
                    hidden = carray(f32_pointer(row_scores), (_BLOCK,))
                    for j in range(min(np.int64(_BLOCK), last + 1 - window - start)):
                        hidden[j] = _f32(-np.inf)
                    _add_to_softmax(row, row_scores, sums, totals + row * row_bytes, head_size)

                for row in range(0, num_rows, rows_at_once):
                    weighted = zero_heads(rows_at_once, head_size)
                    for j in range(num_keys):
                        value = load(values + j * row_bytes, head_size, False)
                        weighted = add_weighted(weighted, scores + row * score_bytes + j * 4, score_bytes, value)
                    add_heads(totals + row * row_bytes, row_bytes, weighted)

            for row in range(num_rows):
                target = block[OUT] + group_offset + row // heads_per_kv * token_bytes + row % heads_per_kv * head_bytes
                inverse = splat(_f32(1.0) / carray(f32_pointer(sums + row * 8), (2,))[1], head_size)
                store(target, multiply(load(totals + row * row_bytes, head_size, False), inverse), True)

    return compile_kernel(attend_chunks)
