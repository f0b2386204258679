"""Products of a few rows with a 4-bit or 8-bit matrix by the compiled kernels."""

from __future__ import annotations

import functools

import numpy as np
import torch

from backend.executors.torch_engine import kernels
from backend.executors.torch_engine.compiled_ops import Block, balanced_bounds
from backend.executors.torch_engine.processor import Processor
from backend.executors.torch_engine.product_kernel import GROUP, OUTPUTS, compile_product
from backend.executors.torch_engine.settings import MAX_QUANTISED_ROWS
from backend.executors.torch_engine.team import MAX_THREADS
from backend.executors.torch_engine.weights import EightBit, Quantised


class CompiledProduct:
    """x bf16 [n, in] -> x W^T [n, out] in `out_dtype`; W lies in `tiles`, see `product_kernel`."""

    def __init__(self, tiles: torch.Tensor, bits: int, out_dtype: torch.dtype, processor: Processor) -> None:
        num_items, num_groups, _ = tiles.shape
        num_threads = min(torch.get_num_threads(), MAX_THREADS)
        self.num_outputs = num_items * OUTPUTS
        self.tiles = tiles
        self._num_columns = num_groups * GROUP
        self._out_dtype = out_dtype
        self._scratch = _scratch(num_threads * MAX_QUANTISED_ROWS * self._num_columns)
        self.block = Block(compile_product(bits, out_dtype is torch.bfloat16, processor), num_threads)
        self.block.set_addresses({kernels.CODES: tiles, kernels.SCRATCH: self._scratch})
        self.block.set_arrays({kernels.BOUNDS: balanced_bounds(np.ones(num_items), num_threads)})
        self.block.fields[kernels.WIDTH] = self._num_columns
        self.block.fields[kernels.OUT_WIDTH] = self.num_outputs

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) <= MAX_QUANTISED_ROWS, f"{len(x)} rows"
        assert x.shape[1] == self._num_columns
        assert x.dtype is torch.bfloat16
        x = x.contiguous()
        out = torch.empty((len(x), self.num_outputs), dtype=self._out_dtype)
        self.block.set_addresses({kernels.X: x, kernels.OUT: out})
        self.block.fields[kernels.NUM_ROWS] = len(x)
        self.block.run()
        return out


@functools.cache
def _scratch(size: int) -> torch.Tensor:
    """Return what every product of this size shares: only one runs at a time."""
    return torch.empty(size)


def four_bit_product(matrix: Quantised, out_dtype: torch.dtype, processor: Processor) -> CompiledProduct:
    """Return the product whose results are `out_dtype`; the matrix must fall into whole tiles."""
    num_outputs, num_columns = matrix.codes.shape
    shape = num_outputs // OUTPUTS, num_columns // GROUP
    codes = matrix.codes.view(shape[0], OUTPUTS, shape[1], 4, 4, 2).to(torch.int16)
    codes = codes.permute(4, 0, 2, 3, 1, 5)  # the four codes of a word lie 8 columns wide, two columns to a pair
    words = codes[0] | codes[1] << 4 | codes[2] << 8 | codes[3] << 12
    parts = [words.reshape(*shape, -1), _scale_words(matrix.scales), _scale_words(matrix.minima)]
    return CompiledProduct(torch.cat(parts, -1), 4, out_dtype, processor)


def eight_bit_product(matrix: EightBit, out_dtype: torch.dtype, processor: Processor) -> CompiledProduct:
    """Return the product whose results are `out_dtype`; the matrix must fall into whole tiles."""
    num_outputs, num_columns = matrix.codes.shape
    shape = num_outputs // OUTPUTS, num_columns // GROUP
    pairs = matrix.codes.view(shape[0], OUTPUTS, shape[1], GROUP // 2, 2).permute(0, 2, 3, 1, 4)
    parts = [pairs.reshape(*shape, -1).view(torch.int16), _scale_words(matrix.scales)]
    return CompiledProduct(torch.cat(parts, -1), 8, out_dtype, processor)


def falls_into_tiles(num_outputs: int, num_columns: int) -> bool:
    """True for the sizes that the kernels multiply."""
    return num_outputs % OUTPUTS == 0 and num_columns % GROUP == 0


def _scale_words(scales: torch.Tensor) -> torch.Tensor:
    """Return the float16 of each tile [out / 16, groups, 16], as words."""
    return scales.half().view(len(scales) // OUTPUTS, OUTPUTS, -1).transpose(1, 2).contiguous().view(torch.int16)
