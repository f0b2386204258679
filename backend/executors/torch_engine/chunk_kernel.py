"""The compiled kernel that attends from a chunk of a sequence's tokens at once: bf16 in and out, float32 between.

A tile of tokens reads each key and value once for all its rows (R query heads of each token). A word of 32 bits holds
two bf16, and a product adds both to a float32 sum. Keys are turned into columns of pairs of dimensions, so that scores
need no sums over lanes. Values are interleaved in pairs of keys. The softmax is computed online (Milakov and
Gimelshein 2018; Dao et al. 2022): per row the highest score, the sum and the weighted values so far.
Names as in `kernels.py`.
"""

# the kernel's body is numba's language, not Python's.
# mypy: disable-error-code="attr-defined, arg-type, call-arg, type-var, unreachable, untyped-decorator, var-annotated"

from __future__ import annotations

import functools
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
    add_pair_products,
    exp2,
    f32_pointer,
    first_lane,
    i32_pointer,
    i64_pointer,
    load,
    load_interleaved,
    max_lanes,
    maximum,
    multiply,
    multiply_add,
    splat,
    store,
    store_bf16,
    store_heads,
    sum_lanes,
    turn,
    zero_heads,
)

TILE = 32  # tokens that share a pass over keys and values
_BLOCK = 256  # keys of a pass; the packed keys and values stay in the second-level cache
_COLUMNS = 64  # keys whose scores are computed at once
_VECTOR = 16
HEAD_STEP = _VECTOR  # a head's size must be a multiple of it
_SCORES = _BLOCK + _VECTOR  # a row of scores: masking may write a vector past its end
_LOWEST = np.float32(-1e30)  # not -inf: the difference of two of them is a number
_LOG2_E = np.float32(1.44269504)
_f32 = np.float32


@dataclass(frozen=True, slots=True)
class ChunkKernel:
    """The kernel for one head size and number of heads per key-value head; `scratch_size`: float32 per thread."""

    attend: Kernel
    scratch_size: int


@functools.cache
def compile_chunk_kernel(head_size: int, heads_per_kv: int, has_bf16_products: bool) -> ChunkKernel:
    """Compile, or read from the cache on disk. `has_bf16_products`: the processor has AVX-512 BF16."""
    assert head_size % HEAD_STEP == 0, f"heads of {head_size} elements"
    # Vectors of sums in an inner loop, of AVX-512's 32 registers; widened pairs need some themselves.
    registers = 24 if has_bf16_products else 16
    rows_at_once = max(1, registers * _VECTOR // max(head_size, _COLUMNS))
    max_rows = -(-TILE * heads_per_kv // rows_at_once) * rows_at_once
    size = max_rows * (head_size // 2 + head_size + 3) + rows_at_once * _SCORES + _BLOCK * (head_size + 2)
    scratch_size = -(-size // _VECTOR) * _VECTOR
    attend = _attend_chunks(head_size, heads_per_kv, rows_at_once, max_rows, scratch_size, has_bf16_products)
    return ChunkKernel(attend, scratch_size)


@njit(forceinline=True)
def _raise_highest(state: Any, scores: Any, count: Any) -> None:
    """Take `count` scores into a row's state: float32 highest score, highest score before, sum of weights."""
    highest = splat(state[0], _VECTOR)
    for j in range(0, count, _VECTOR):
        highest = maximum(highest, load(scores + j * 4, _VECTOR, False))
    state[1] = state[0]
    state[0] = max_lanes(highest)


@njit(forceinline=True)
def _weigh(state: Any, scores: Any, count: Any, factor: Any, totals: Any, width: Any, is_native: Any) -> None:
    """Turn `count` scores into weights 2^(factor * (score - highest)), bf16, in place, and rescale the earlier sums.

    totals: the row's weighted values, float32 [width].
    """
    factors, shift = splat(factor, _VECTOR), splat(-state[0] * factor, _VECTOR)
    total = splat(_f32(0.0), _VECTOR)
    for j in range(0, count, _VECTOR):
        weight = exp2(multiply_add(load(scores + j * 4, _VECTOR, False), factors, shift))
        store_bf16(scores + j * 2, weight, is_native)
        total = add(total, weight)
    rescale = exp2(multiply_add(splat(state[1], _VECTOR), factors, shift))
    for d in range(0, width, _VECTOR):
        store(totals + d * 4, multiply(load(totals + d * 4, _VECTOR, False), rescale), False)
    state[2] = state[2] * first_lane(rescale) + sum_lanes(total)


def _attend_chunks(
    head_size: int, heads_per_kv: int, rows_at_once: int, max_rows: int, scratch_size: int, has_bf16_products: bool
) -> Kernel:
    """An item is a tile of a sequence's tokens and a key-value head. TOKENS: int64 [tiles, 2], first token and number.

    X: queries [N, H, D]; OUT: [N, H, D]. SCRATCH: float32 [scratch_size] per thread.
    """
    head_bytes = head_size * 2
    row_bytes, score_bytes = head_size * 4, _SCORES * 4
    column_bytes = _COLUMNS * 4
    num_pairs = head_size // 2

    def attend_chunks(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        numbers = carray(data, (NUM_FIELDS,), np.float64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        num_kv, window = block[NUM_KV_HEADS], block[WINDOW]
        token_bytes = num_kv * heads_per_kv * head_bytes
        scale, softcap = _f32(numbers[SCALE]), _f32(numbers[SOFTCAP])
        factor = _LOG2_E if softcap > _f32(0.0) else scale * _LOG2_E
        queries = block[SCRATCH] + thread * scratch_size * 4
        totals = queries + max_rows * head_bytes
        scores = totals + max_rows * row_bytes
        values = scores + rows_at_once * score_bytes  # [_BLOCK / 2, D] pairs of keys
        columns = values + _BLOCK * head_bytes  # [_BLOCK / _COLUMNS, D / 2, _COLUMNS] pairs of dimensions
        addresses = columns + _BLOCK * head_bytes
        sums = addresses + _BLOCK * 8
        keys = carray(i64_pointer(addresses), (_BLOCK,))
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
                store(queries + row * head_bytes, load(source, num_pairs, False), False)
                store(totals + row * row_bytes, splat(_f32(0.0), head_size), False)
                state = carray(f32_pointer(sums + row * 12), (3,))
                state[0], state[2] = _LOWEST, _f32(0.0)

            for start in range(max(np.int64(0), position + 1 - window) // _BLOCK * _BLOCK, end, _BLOCK):
                num_keys = min(np.int64(_BLOCK), end - start)
                for j in range(0, num_keys, _VECTOR):
                    for i in range(j, j + _VECTOR):  # the last key fills the vector up; its copies are hidden below
                        keys[i] = stored_keys + np.int64(slots[start + min(i, num_keys - 1)]) * 2 * num_kv * head_bytes
                    target = columns + j // _COLUMNS * _COLUMNS * head_bytes + j % _COLUMNS * 4
                    for d in range(0, num_pairs, 8):
                        turn(addresses + j * 8, d * 4, target + d * column_bytes, column_bytes)
                    for i in range(j, j + _VECTOR, 2):
                        first, second = keys[i] + num_kv * head_bytes, keys[i + 1] + num_kv * head_bytes
                        store(values + i * head_bytes, load_interleaved(first, second, head_size), False)

                for row in range(0, num_rows, rows_at_once):
                    last = position + (row + rows_at_once - 1) // heads_per_kv
                    num_visible = min(num_keys, last + 1 - start)
                    for first in range(0, num_visible, _COLUMNS):
                        products = zero_heads(rows_at_once, _COLUMNS)
                        for d in range(num_pairs):
                            column = load(columns + first * head_bytes + d * column_bytes, _COLUMNS, False)
                            pairs = queries + row * head_bytes + d * 4
                            products = add_pair_products(products, pairs, head_bytes, column, has_bf16_products)
                        store_heads(scores + first * 4, score_bytes, products, False)

                    num_weights = (num_visible + _VECTOR - 1) // _VECTOR * _VECTOR
                    for i in range(row, min(row + rows_at_once, num_rows)):
                        row_scores = scores + (i - row) * score_bytes
                        last = position + i // heads_per_kv
                        if softcap > _f32(0.0):
                            cap_scores(row_scores, num_weights, scale, softcap)
                        for j in range(max(np.int64(0), last + 1 - start), num_weights, _VECTOR):
                            store(row_scores + j * 4, splat(_LOWEST, _VECTOR), False)
                        hidden = carray(f32_pointer(row_scores), (_BLOCK,))
                        for j in range(min(num_weights, last + 1 - window - start)):
                            hidden[j] = _LOWEST
                        state = carray(f32_pointer(sums + i * 12), (3,))
                        _raise_highest(state, row_scores, num_weights)
                    for i in range(row, min(row + rows_at_once, num_rows)):  # apart: so rows do not wait for each other
                        row_scores = scores + (i - row) * score_bytes
                        state = carray(f32_pointer(sums + i * 12), (3,))
                        _weigh(
                            state, row_scores, num_weights, factor, totals + i * row_bytes, head_size, has_bf16_products
                        )

                    weighted = zero_heads(rows_at_once, head_size)
                    for j in range(0, num_visible, 2):
                        value = load(values + j * head_bytes, head_size, False)
                        weighted = add_pair_products(weighted, scores + j * 2, score_bytes, value, has_bf16_products)
                    add_heads(totals + row * row_bytes, row_bytes, weighted)

            for row in range(num_rows):
                target = block[OUT] + group_offset + row // heads_per_kv * token_bytes + row % heads_per_kv * head_bytes
                inverse = splat(_f32(1.0) / carray(f32_pointer(sums + row * 12), (3,))[2], head_size)
                store(target, multiply(load(totals + row * row_bytes, head_size, False), inverse), True)

    return compile_kernel(attend_chunks)
