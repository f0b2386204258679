"""The compiled kernels between two GEMMs of a layer: attention over slots, rotation and storing of K and V, norm, SiLU.

Each is a C function `void f(void *block)`; `block` is an array of int64 whose fields are named below, so a call from
Python passes one pointer. Thread t of the team computes the items `[bounds[t], bounds[t + 1])`. Nothing a token yields
depends on which other tokens, sequences or threads are in the step.

N tokens, H query heads, G key-value heads, R = H / G, D head size, E hidden size, F feed-forward size.
K and V lie in one pool: [slot, 2, G, D], so a token's K and V of one layer are one run of bytes.
"""

# the kernels' bodies are numba's language, not Python's.
# mypy: disable-error-code="attr-defined, arg-type, call-arg, type-var, unreachable, untyped-decorator, var-annotated"

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray, njit, types

from backend.executors.torch_engine.kernel_cache import Kernel, compile_kernel
from backend.executors.torch_engine.lanes import (
    add,
    add_weighted,
    divide,
    dot_heads,
    exp,
    i32_pointer,
    i64_pointer,
    load,
    max_lanes,
    maximum,
    multiply,
    multiply_add,
    negate,
    prefetch,
    splat,
    store,
    store_heads,
    subtract,
    sum_lanes,
    zero_heads,
)
from backend.executors.torch_engine.team import THREAD_INDEX_SYMBOL

# Fields of a block. BOUNDS: int64 [threads + 1]. ROWS int32 [N], POSITIONS, SLOTS int64 [N]: as in StepInputs.
(
    BOUNDS,
    TOKENS,
    OUT,
    X,
    POOL,
    SLOT_TABLE,
    SLOT_TABLE_WIDTH,
    ROWS,
    POSITIONS,
    SLOTS,
    SCRATCH,
    SCRATCH_WIDTH,
    NUM_HEADS,
    NUM_KV_HEADS,
    HEADS_PER_ITEM,
    WINDOW,
    HIDDEN,
    WEIGHT,
    WIDTH,
    COS,
    SIN,
    SCALE,
    SOFTCAP,
    EPSILON,
    CODES,
    NUM_ROWS,
    OUT_WIDTH,
) = range(27)
NUM_FIELDS = 27

_PREFETCH_KEYS = 16  # keys ahead
_CACHE_LINE = 64
_VECTOR = 16  # lanes of the element-wise kernels
SCRATCH_PADDING = _VECTOR  # float32 after a row of scores: its last vector may be half empty

thread_index = types.ExternalFunction(THREAD_INDEX_SYMBOL, types.int32())
_f32 = np.float32


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels compiled for one head size, number of heads per key-value head and dtype."""

    attend: Kernel
    rotate_and_store: Kernel
    add_norm: Kernel
    silu_multiply: Kernel


@functools.cache
def compile_kernels(head_size: int, heads_per_kv: int, is_bf16: bool) -> Kernels:
    """Compile, or read from numba's cache on disk (a few seconds the first time)."""
    return Kernels(
        attend=_attend(head_size, heads_per_kv, is_bf16),
        rotate_and_store=_rotate_and_store(head_size, is_bf16),
        add_norm=_add_norm(is_bf16),
        silu_multiply=_silu_multiply(is_bf16),
    )


@njit(forceinline=True)
def cap_scores(scores: Any, count: Any, scale: Any, softcap: Any) -> None:
    """Replace the float32 at address `scores`, and up to 15 more, by `softcap * tanh(scale * score / softcap)`."""
    one, two = splat(_f32(1.0), _VECTOR), splat(_f32(2.0), _VECTOR)
    for j in range(0, count, _VECTOR):
        power = exp(multiply(load(scores + j * 4, _VECTOR, False), splat(_f32(2.0) * scale / softcap, _VECTOR)))
        tanh = subtract(one, divide(two, add(power, one)))
        store(scores + j * 4, multiply(tanh, splat(softcap, _VECTOR)), False)


@njit(forceinline=True)
def _softmax(scores: Any, count: Any, softcap: Any) -> None:
    """Turn the float32 at address `scores` into probabilities, in place; writes up to 15 more. softcap 0 is none."""
    if softcap > _f32(0.0):
        cap_scores(scores, count, _f32(1.0), softcap)
    store(scores + count * 4, splat(_f32(-np.inf), _VECTOR), False)
    highest = splat(_f32(-np.inf), _VECTOR)
    for j in range(0, count, _VECTOR):
        highest = maximum(highest, load(scores + j * 4, _VECTOR, False))
    total, top = splat(_f32(0.0), _VECTOR), splat(max_lanes(highest), _VECTOR)
    for j in range(0, count, _VECTOR):
        weight = exp(subtract(load(scores + j * 4, _VECTOR, False), top))
        store(scores + j * 4, weight, False)
        total = add(total, weight)
    scale = splat(_f32(1.0) / sum_lanes(total), _VECTOR)
    for j in range(0, count, _VECTOR):
        store(scores + j * 4, multiply(load(scores + j * 4, _VECTOR, False), scale), False)


def _attend(head_size: int, heads_per_kv: int, is_bf16: bool) -> Kernel:
    """An item is one of TOKENS (int32) and HEADS_PER_ITEM of its key-value heads. X: queries [N, H, D]; OUT: [N, H, D].

    SCRATCH, per thread: float32 scores [R, SCRATCH_WIDTH] of one key-value head, then scaled queries [R, D].
    """
    value_bytes = 2 if is_bf16 else 4
    head_bytes = head_size * value_bytes
    group_bytes = heads_per_kv * head_bytes

    def attend(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        numbers = carray(data, (NUM_FIELDS,), np.float64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        num_kv, heads_per_item = block[NUM_KV_HEADS], block[HEADS_PER_ITEM]
        items_per_token = num_kv // heads_per_item
        score_bytes = block[SCRATCH_WIDTH] * 4
        slot_bytes = 2 * num_kv * head_bytes
        item_scores = heads_per_item * heads_per_kv * score_bytes
        scores = block[SCRATCH] + thread * num_kv * heads_per_kv * (score_bytes + head_size * 4)
        queries = scores + num_kv * heads_per_kv * score_bytes
        scale, softcap = _f32(numbers[SCALE]), _f32(numbers[SOFTCAP])
        for item in range(bounds[thread], bounds[thread + 1]):
            token = np.int64(
                carray(i32_pointer(block[TOKENS]), (item // items_per_token + 1,))[item // items_per_token]
            )
            first_kv = item % items_per_token * heads_per_item
            row = np.int64(carray(i32_pointer(block[ROWS]), (token + 1,))[token])
            end = carray(i64_pointer(block[POSITIONS]), (token + 1,))[token] + 1
            first = max(np.int64(0), end - block[WINDOW])
            slots = carray(i32_pointer(block[SLOT_TABLE] + row * block[SLOT_TABLE_WIDTH] * 4), (end,))
            rows_offset = (token * num_kv + first_kv) * group_bytes
            for head in range(heads_per_item * heads_per_kv):
                query = load(block[X] + rows_offset + head * head_bytes, head_size, is_bf16)
                store(queries + head * head_size * 4, multiply(query, splat(scale, head_size)), False)

            keys = block[POOL] + first_kv * head_bytes
            values = keys + num_kv * head_bytes
            for j in range(first, end):
                if j + _PREFETCH_KEYS < end:
                    ahead = np.int64(slots[j + _PREFETCH_KEYS]) * slot_bytes
                    for offset in range(0, heads_per_item * head_bytes, _CACHE_LINE):
                        prefetch(keys + ahead + offset)
                        prefetch(values + ahead + offset)
                address = keys + np.int64(slots[j]) * slot_bytes
                for index in range(heads_per_item):
                    dot_heads(
                        queries + index * heads_per_kv * head_size * 4,
                        load(address + index * head_bytes, head_size, is_bf16),
                        scores + index * heads_per_kv * score_bytes + (j - first) * 4,
                        score_bytes,
                        heads_per_kv,
                    )
            for offset in range(0, item_scores, score_bytes):
                _softmax(scores + offset, end - first, softcap)

            for index in range(heads_per_item):
                weights = scores + index * heads_per_kv * score_bytes
                totals = zero_heads(heads_per_kv, head_size)
                for j in range(first, end):
                    value = load(values + index * head_bytes + np.int64(slots[j]) * slot_bytes, head_size, is_bf16)
                    totals = add_weighted(totals, weights + (j - first) * 4, score_bytes, value)
                store_heads(block[OUT] + rows_offset + index * group_bytes, head_bytes, totals, is_bf16)

    return compile_kernel(attend)


def _rotate_and_store(head_size: int, is_bf16: bool) -> Kernel:
    """An item is a token. X: [N, H + 2G, D] from the fused projection; OUT: rotated queries [N, H, D].

    COS, SIN: float32 [positions, D / 2]. The two halves of a head are rotated against each other.
    """
    half = head_size // 2
    value_bytes = 2 if is_bf16 else 4
    head_bytes, half_bytes = head_size * value_bytes, half * value_bytes

    def rotate_and_store(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        num_heads, num_kv = block[NUM_HEADS], block[NUM_KV_HEADS]
        for token in range(bounds[thread], bounds[thread + 1]):
            position = carray(i64_pointer(block[POSITIONS]), (token + 1,))[token]
            slot = carray(i64_pointer(block[SLOTS]), (token + 1,))[token]
            cos = load(block[COS] + position * half * 4, half, False)
            sin = load(block[SIN] + position * half * 4, half, False)
            source = block[X] + token * (num_heads + 2 * num_kv) * head_bytes
            target = block[OUT] + token * num_heads * head_bytes
            stored = block[POOL] + slot * 2 * num_kv * head_bytes
            for head in range(num_heads + num_kv):
                if head == num_heads:
                    target = stored
                first, second = load(source, half, is_bf16), load(source + half_bytes, half, is_bf16)
                store(target, multiply_add(first, cos, negate(multiply(second, sin))), is_bf16)
                store(target + half_bytes, multiply_add(second, cos, multiply(first, sin)), is_bf16)
                source += head_bytes
                target += head_bytes
            for _ in range(num_kv):
                store(target, load(source, head_size, is_bf16), is_bf16)
                source += head_bytes
                target += head_bytes

    return compile_kernel(rotate_and_store)


def _add_norm(is_bf16: bool) -> Kernel:
    """An item is a token. HIDDEN float32 [N, E] += X [N, E] (nothing where X is 0), then OUT [N, E] = RMSNorm(HIDDEN).

    WIDTH: E, a multiple of 16. WEIGHT: float32 [E].
    """
    value_bytes = 2 if is_bf16 else 4

    def add_norm(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        numbers = carray(data, (NUM_FIELDS,), np.float64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        width = block[WIDTH]
        for token in range(bounds[thread], bounds[thread + 1]):
            address, source = block[HIDDEN] + token * width * 4, block[X] + token * width * value_bytes
            target = block[OUT] + token * width * value_bytes
            if block[X] != 0:
                for e in range(0, width, _VECTOR):
                    delta = load(source + e * value_bytes, _VECTOR, is_bf16)
                    one = splat(_f32(1.0), _VECTOR)
                    store(address + e * 4, multiply_add(delta, one, load(address + e * 4, _VECTOR, False)), False)
            squares = splat(_f32(0.0), _VECTOR)
            for e in range(0, width, _VECTOR):
                hidden = load(address + e * 4, _VECTOR, False)
                squares = multiply_add(hidden, hidden, squares)
            mean = sum_lanes(squares) / _f32(width)
            scale = splat(_f32(1.0) / np.sqrt(mean + _f32(numbers[EPSILON])), _VECTOR)
            for e in range(0, width, _VECTOR):
                normed = multiply(load(address + e * 4, _VECTOR, False), scale)
                weight = load(block[WEIGHT] + e * 4, _VECTOR, False)
                store(target + e * value_bytes, multiply(normed, weight), is_bf16)

    return compile_kernel(add_norm)


def _silu_multiply(is_bf16: bool) -> Kernel:
    """An item is a token. X: [N, 2F], gate then up; OUT: [N, F] = SiLU(gate) * up. WIDTH: F, a multiple of 16."""
    value_bytes = 2 if is_bf16 else 4

    def silu_multiply(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        width = block[WIDTH]
        one = splat(_f32(1.0), _VECTOR)
        for token in range(bounds[thread], bounds[thread + 1]):
            gates = block[X] + token * 2 * width * value_bytes
            ups = gates + width * value_bytes
            target = block[OUT] + token * width * value_bytes
            for f in range(0, width, _VECTOR):
                gate = load(gates + f * value_bytes, _VECTOR, is_bf16)
                sigmoid = divide(one, add(one, exp(negate(gate))))
                up = load(ups + f * value_bytes, _VECTOR, is_bf16)
                store(target + f * value_bytes, multiply(multiply(gate, sigmoid), up), is_bf16)

    return compile_kernel(silu_multiply)
