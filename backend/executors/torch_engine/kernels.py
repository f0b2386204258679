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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from backend.executors.torch_engine.lanes import (
    bits_as_f32,
    f32_pointer,
    i32_pointer,
    i64_pointer,
    load,
    multiply,
    multiply_add,
    negate,
    prefetch,
    splat,
    store,
    sum_lanes,
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
) = range(24)
NUM_FIELDS = 24

_PREFETCH_KEYS = 6  # keys ahead
_CACHE_LINE = 64
_VECTOR = 16  # lanes of the element-wise kernels

_thread_index = types.ExternalFunction(THREAD_INDEX_SYMBOL, types.int32())
_f32 = np.float32

Kernel = Any  # numba's CFunc; `.address` is what `run_on_team` takes


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels compiled for one head size and dtype."""

    attend: Kernel
    rotate_and_store: Kernel
    add_norm: Kernel
    silu_multiply: Kernel


def compile_kernels(head_size: int, is_bf16: bool) -> Kernels:
    """Compile, or read from numba's cache on disk (a few seconds the first time)."""
    return Kernels(
        attend=_attend(head_size, is_bf16),
        rotate_and_store=_rotate_and_store(head_size, is_bf16),
        add_norm=_add_norm(is_bf16),
        silu_multiply=_silu_multiply(is_bf16),
    )


def _kernel(function: Callable[[Any], None]) -> Kernel:
    return cfunc(types.void(types.voidptr), cache=True, fastmath=True)(function)


@njit(forceinline=True, fastmath=True)
def _exp(x: Any) -> Any:
    """exp(x) for float32 by Cephes' polynomial (relative error 2e-7), which LLVM vectorises, unlike a call."""
    x = min(max(x, _f32(-87.0)), _f32(88.0))
    power = np.floor(x * _f32(1.44269504) + _f32(0.5))
    r = x - power * _f32(0.693359375) + power * _f32(2.12194440e-4)
    p = _f32(1.9875691500e-4)
    p = p * r + _f32(1.3981999507e-3)
    p = p * r + _f32(8.3334519073e-3)
    p = p * r + _f32(4.1665795894e-2)
    p = p * r + _f32(1.6666665459e-1)
    p = p * r + _f32(5.0000001201e-1)
    return (p * r * r + r + _f32(1.0)) * bits_as_f32(np.uint32((np.int32(power) + np.int32(127)) << np.int32(23)))


@njit(forceinline=True, fastmath=True)
def _softmax(scores: Any, first: int, end: int, softcap: Any) -> None:
    """Turn scores [first, end) into probabilities, in place; softcap 0 is none."""
    if softcap > _f32(0.0):
        for j in range(first, end):
            scores[j] = softcap * (_f32(1.0) - _f32(2.0) / (_exp(_f32(2.0) / softcap * scores[j]) + _f32(1.0)))
    highest = scores[first]
    for j in range(first, end):
        highest = max(highest, scores[j])
    total = _f32(0.0)
    for j in range(first, end):
        scores[j] = _exp(scores[j] - highest)
        total += scores[j]
    scale = _f32(1.0) / total
    for j in range(first, end):
        scores[j] *= scale


def _attend(head_size: int, is_bf16: bool) -> Kernel:
    """An item is one of TOKENS (int32) and HEADS_PER_ITEM of its key-value heads. X: queries [N, H, D]; OUT: [N, H, D].

    SCRATCH, per thread: float32 scores [H, SCRATCH_WIDTH], then scaled queries [H, D].
    """
    value_bytes = 2 if is_bf16 else 4
    head_bytes = head_size * value_bytes

    def attend(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        numbers = carray(data, (NUM_FIELDS,), np.float64)
        thread = np.int64(_thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        num_heads, num_kv, heads_per_item = block[NUM_HEADS], block[NUM_KV_HEADS], block[HEADS_PER_ITEM]
        heads_per_kv, items_per_token = num_heads // num_kv, num_kv // heads_per_item
        width = block[SCRATCH_WIDTH]
        slot_bytes = 2 * num_kv * head_bytes
        scores = block[SCRATCH] + thread * num_heads * (width + head_size) * 4
        queries = scores + num_heads * width * 4
        scale, softcap = _f32(numbers[SCALE]), _f32(numbers[SOFTCAP])
        for item in range(bounds[thread], bounds[thread + 1]):
            token = np.int64(
                carray(i32_pointer(block[TOKENS]), (item // items_per_token + 1,))[item // items_per_token]
            )
            first_kv = item % items_per_token * heads_per_item
            first_head, end_head = first_kv * heads_per_kv, (first_kv + heads_per_item) * heads_per_kv
            row = np.int64(carray(i32_pointer(block[ROWS]), (token + 1,))[token])
            end = carray(i64_pointer(block[POSITIONS]), (token + 1,))[token] + 1
            first = max(np.int64(0), end - block[WINDOW])
            table = block[SLOT_TABLE] + row * block[SLOT_TABLE_WIDTH] * 4
            slots = carray(i32_pointer(table), (end,))
            for head in range(first_head, end_head):
                query = load(block[X] + (token * num_heads + head) * head_bytes, head_size, is_bf16)
                store(queries + head * head_size * 4, multiply(query, splat(scale, head_size)), False)

            keys = block[POOL] + first_kv * head_bytes
            for j in range(first, end):
                if j + _PREFETCH_KEYS < end:
                    ahead = keys + np.int64(slots[j + _PREFETCH_KEYS]) * slot_bytes
                    for offset in range(0, heads_per_item * head_bytes, _CACHE_LINE):
                        prefetch(ahead + offset)
                key_address = keys + np.int64(slots[j]) * slot_bytes
                for index in range(heads_per_item):
                    key = load(key_address + index * head_bytes, head_size, is_bf16)
                    for head in range(first_head + index * heads_per_kv, first_head + (index + 1) * heads_per_kv):
                        query = load(queries + head * head_size * 4, head_size, False)
                        carray(f32_pointer(scores + head * width * 4), (end,))[j] = sum_lanes(multiply(query, key))

            for head in range(first_head, end_head):
                _softmax(carray(f32_pointer(scores + head * width * 4), (end,)), first, end, softcap)

            values = keys + num_kv * head_bytes
            for head in range(first_head, end_head):
                weights = carray(f32_pointer(scores + head * width * 4), (end,))
                head_values = values + (head // heads_per_kv - first_kv) * head_bytes
                total = splat(_f32(0.0), head_size)
                for j in range(first, end):
                    if head == first_head and j + _PREFETCH_KEYS < end:
                        ahead = values + np.int64(slots[j + _PREFETCH_KEYS]) * slot_bytes
                        for offset in range(0, heads_per_item * head_bytes, _CACHE_LINE):
                            prefetch(ahead + offset)
                    value = load(head_values + np.int64(slots[j]) * slot_bytes, head_size, is_bf16)
                    total = multiply_add(splat(weights[j], head_size), value, total)
                store(block[OUT] + (token * num_heads + head) * head_bytes, total, is_bf16)

    return _kernel(attend)


def _rotate_and_store(head_size: int, is_bf16: bool) -> Kernel:
    """An item is a token. X: [N, H + 2G, D] from the fused projection; OUT: rotated queries [N, H, D].

    COS, SIN: float32 [positions, D / 2]. The two halves of a head are rotated against each other.
    """
    half = head_size // 2
    value_bytes = 2 if is_bf16 else 4
    head_bytes, half_bytes = head_size * value_bytes, half * value_bytes

    def rotate_and_store(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        thread = np.int64(_thread_index())
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

    return _kernel(rotate_and_store)


def _add_norm(is_bf16: bool) -> Kernel:
    """An item is a token. HIDDEN float32 [N, E] += X [N, E] (nothing where X is 0), then OUT [N, E] = RMSNorm(HIDDEN).

    WIDTH: E, a multiple of 16. WEIGHT: float32 [E].
    """
    value_bytes = 2 if is_bf16 else 4

    def add_norm(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        numbers = carray(data, (NUM_FIELDS,), np.float64)
        thread = np.int64(_thread_index())
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
            hidden = carray(f32_pointer(address), (width,))
            total = _f32(0.0)
            for e in range(width):
                total += hidden[e] * hidden[e]
            scale = splat(_f32(1.0) / np.sqrt(total / _f32(width) + _f32(numbers[EPSILON])), _VECTOR)
            for e in range(0, width, _VECTOR):
                normed = multiply(load(address + e * 4, _VECTOR, False), scale)
                weight = load(block[WEIGHT] + e * 4, _VECTOR, False)
                store(target + e * value_bytes, multiply(normed, weight), is_bf16)

    return _kernel(add_norm)


def _silu_multiply(is_bf16: bool) -> Kernel:
    """An item is a token. X: [N, 2F], gate then up; OUT: [N, F] = SiLU(gate) * up. WIDTH: F, a multiple of 16."""
    value_bytes = 2 if is_bf16 else 4

    def silu_multiply(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        thread = np.int64(_thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        width = block[WIDTH]
        scratch = block[SCRATCH] + thread * width * 4
        gate = carray(f32_pointer(scratch), (width,))
        for token in range(bounds[thread], bounds[thread + 1]):
            source = block[X] + token * 2 * width * value_bytes
            target = block[OUT] + token * width * value_bytes
            for f in range(0, width, _VECTOR):
                store(scratch + f * 4, load(source + f * value_bytes, _VECTOR, is_bf16), False)
            for f in range(width):
                gate[f] = gate[f] / (_f32(1.0) + _exp(-gate[f]))
            source += width * value_bytes
            for f in range(0, width, _VECTOR):
                up = load(source + f * value_bytes, _VECTOR, is_bf16)
                store(target + f * value_bytes, multiply(load(scratch + f * 4, _VECTOR, False), up), is_bf16)

    return _kernel(silu_multiply)
