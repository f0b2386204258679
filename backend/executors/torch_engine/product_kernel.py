"""The compiled kernels that multiply a few rows by a 4-bit or 8-bit matrix: bf16 in, float32 between.

The matrix is stored in tiles of 16 rows (its outputs) by 32 columns (a group with one scale), in reading order. A
tile's word holds neighbouring columns of one output. There are two kernels over the same tiles:

- by pairs: AVX-512 BF16's instruction adds both products of a pair of columns to a lane. Codes are small whole numbers,
  exact in bf16, and a group's sum is scaled once.
- widened: codes become float32 and are scaled before they are multiplied. It runs on every processor.

A row's result does not depend on the other rows.
"""

# the kernel's body is numba's language, not Python's.
# mypy: disable-error-code="attr-defined, arg-type, call-arg, type-var, unreachable, untyped-decorator, var-annotated"

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import carray, njit

from backend.executors.torch_engine.kernel_cache import Kernel, compile_kernel
from backend.executors.torch_engine.kernels import (
    BOUNDS,
    CODES,
    NUM_FIELDS,
    NUM_ROWS,
    OUT,
    OUT_WIDTH,
    SCRATCH,
    WIDTH,
    X,
    thread_index,
)
from backend.executors.torch_engine.lanes import (
    add_code_products,
    add_pair_products,
    add_scaled,
    add_weighted,
    f32_pointer,
    i64_pointer,
    load,
    load_byte_pairs,
    load_float16,
    load_nibble_pairs,
    prefetch,
    splat,
    store,
    store_heads,
    sum_lanes,
    zero_heads,
)
from backend.executors.torch_engine.processor import Processor

OUTPUTS, GROUP = 16, 32  # rows and columns of a tile
TILE_BYTES = {4: 320, 8: 544}  # codes and float16 scales, and minima of 4-bit ones
_SCALES_AT = {4: 256, 8: 512}  # bytes from a tile's start
_MINIMA_AT = 288
_PREFETCH_BYTES = 4096  # ahead in the matrix
_CACHE_LINE = 64


def compile_product(bits: int, is_out_bf16: bool, processor: Processor) -> Kernel:
    """An item is 16 outputs. X: bf16 [NUM_ROWS, WIDTH]; OUT: [NUM_ROWS, OUT_WIDTH]; CODES: the tiles.

    SCRATCH: float32 [threads, NUM_ROWS, WIDTH].
    """
    if processor.has_avx512_bf16:
        return _compile_pairs(bits, is_out_bf16)
    return _compile_widened(bits, is_out_bf16, 8 if processor.has_avx512 else 4)


@functools.cache
def _compile_pairs(bits: int, is_out_bf16: bool) -> Kernel:
    # More than eight rows' accumulators would not stay in registers.
    eight, four, two, one = (_rows_times_tiles(n, bits, is_out_bf16) for n in (8, 4, 2, 1))
    tile_bytes = TILE_BYTES[bits]
    out_bytes = OUTPUTS * (2 if is_out_bf16 else 4)
    needs_sums = bits == 4

    def product(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        num_rows, num_groups = block[NUM_ROWS], block[WIDTH] // GROUP
        sums = block[SCRATCH] + thread * num_rows * num_groups * 4
        if needs_sums:
            _sum_groups(block[X], sums, num_rows * num_groups)
        for item in range(bounds[thread], bounds[thread + 1]):
            tiles = block[CODES] + item * num_groups * tile_bytes
            out = block[OUT] + item * out_bytes
            row = np.int64(0)
            while row + 8 <= num_rows:
                row = eight(block, tiles, sums, out, row)
            if row + 4 <= num_rows:
                row = four(block, tiles, sums, out, row)
            if row + 2 <= num_rows:
                row = two(block, tiles, sums, out, row)
            if row < num_rows:
                row = one(block, tiles, sums, out, row)

    return compile_kernel(product)


@njit(forceinline=True)
def _sum_groups(x: Any, sums: Any, count: Any) -> None:
    """Write the sums of each 32 of the bf16 at address `x` to the float32 at `sums`."""
    out = carray(f32_pointer(sums), (count,))
    for group in range(count):
        out[group] = sum_lanes(load(x + group * GROUP * 2, GROUP, True))


def _rows_times_tiles(num_rows: int, bits: int, is_out_bf16: bool) -> Any:
    """Return the function that multiplies `num_rows` rows from `row` on by the tiles of 16 outputs."""
    tile_bytes, scales_at = TILE_BYTES[bits], _SCALES_AT[bits]
    value_bytes = 2 if is_out_bf16 else 4
    is_4_bit = bits == 4

    @njit(forceinline=True)
    def rows_times_tiles(block: Any, tiles: Any, sums: Any, out: Any, row: Any) -> Any:
        num_groups = block[WIDTH] // GROUP
        x_stride, sums_stride, out_stride = block[WIDTH] * 2, num_groups * 4, block[OUT_WIDTH] * value_bytes
        x, sums = block[X] + row * x_stride, sums + row * sums_stride
        totals = zero_heads(num_rows, OUTPUTS)
        for _ in range(num_groups):
            for offset in range(0, tile_bytes, _CACHE_LINE):
                prefetch(tiles + _PREFETCH_BYTES + offset)
            parts = zero_heads(num_rows, OUTPUTS)
            if is_4_bit:
                for quarter in range(4):
                    a, b, c, d = load_nibble_pairs(tiles + quarter * 64)
                    parts = add_pair_products(parts, x + quarter * 16, x_stride, a, True)
                    parts = add_pair_products(parts, x + quarter * 16 + 4, x_stride, b, True)
                    parts = add_pair_products(parts, x + quarter * 16 + 8, x_stride, c, True)
                    parts = add_pair_products(parts, x + quarter * 16 + 12, x_stride, d, True)
            else:
                for pair in range(16):
                    parts = add_pair_products(parts, x + pair * 4, x_stride, load_byte_pairs(tiles + pair * 32), True)
            totals = add_scaled(totals, parts, load_float16(tiles + scales_at, OUTPUTS))
            if is_4_bit:
                totals = add_weighted(totals, sums, sums_stride, load_float16(tiles + _MINIMA_AT, OUTPUTS))
            x += GROUP * 2
            sums += 4
            tiles += tile_bytes
        store_heads(out + row * out_stride, out_stride, totals, is_out_bf16)
        return row + num_rows

    return rows_times_tiles


@functools.cache
def _compile_widened(bits: int, is_out_bf16: bool, rows_at_once: int) -> Kernel:
    """`rows_at_once`: number of rows whose sums stay in registers."""
    many, four, two, one = (_widened_rows_times_tiles(n, bits, is_out_bf16) for n in (rows_at_once, 4, 2, 1))
    tile_bytes = TILE_BYTES[bits]
    out_bytes = OUTPUTS * (2 if is_out_bf16 else 4)

    def product(data: Any) -> None:
        block = carray(data, (NUM_FIELDS,), np.int64)
        thread = np.int64(thread_index())
        bounds = carray(i64_pointer(block[BOUNDS]), (thread + 2,))
        num_rows, width = block[NUM_ROWS], block[WIDTH]
        x = block[SCRATCH] + thread * num_rows * width * 4
        for e in range(0, num_rows * width, GROUP):
            store(x + e * 4, load(block[X] + e * 2, GROUP, True), False)
        for item in range(bounds[thread], bounds[thread + 1]):
            tiles = block[CODES] + item * (width // GROUP) * tile_bytes
            out = block[OUT] + item * out_bytes
            row = np.int64(0)
            while row + rows_at_once <= num_rows:
                row = many(block, tiles, x, out, row)
            if row + 4 <= num_rows:
                row = four(block, tiles, x, out, row)
            if row + 2 <= num_rows:
                row = two(block, tiles, x, out, row)
            if row < num_rows:
                row = one(block, tiles, x, out, row)

    return compile_kernel(product)


def _widened_rows_times_tiles(num_rows: int, bits: int, is_out_bf16: bool) -> Any:
    """Return the function that multiplies `num_rows` rows from `row` on by the tiles of 16 outputs."""
    tile_bytes, scales_at = TILE_BYTES[bits], _SCALES_AT[bits]
    value_bytes = 2 if is_out_bf16 else 4
    is_4_bit = bits == 4
    columns = 8 if is_4_bit else 2  # of a word
    run_bytes = OUTPUTS * (4 if is_4_bit else 2)  # the words of all outputs for the same columns

    @njit(forceinline=True)
    def rows_times_tiles(block: Any, tile: Any, x: Any, out: Any, row: Any) -> Any:
        x_stride, out_stride = block[WIDTH] * 4, block[OUT_WIDTH] * value_bytes
        x += row * x_stride
        totals = zero_heads(num_rows, OUTPUTS)
        for _ in range(block[WIDTH] // GROUP):
            for offset in range(0, tile_bytes, _CACHE_LINE):
                prefetch(tile + _PREFETCH_BYTES + offset)
            scale = load_float16(tile + scales_at, OUTPUTS)
            minimum = splat(np.float32(0.0), OUTPUTS)
            if is_4_bit:
                minimum = load_float16(tile + _MINIMA_AT, OUTPUTS)
            for i in range(GROUP // columns):
                words, first = tile + i * run_bytes, x + i * columns * 4
                totals = add_code_products(totals, first, x_stride, words, scale, minimum, bits)
            x += GROUP * 4
            tile += tile_bytes
        store_heads(out + row * out_stride, out_stride, totals, is_out_bf16)
        return row + num_rows

    return rows_times_tiles
