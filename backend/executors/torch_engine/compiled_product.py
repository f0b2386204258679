"""Products of a few rows with a 4-bit or 8-bit matrix by the compiled kernel, where the processor has AVX-512 BF16."""

from __future__ import annotations

import numpy as np
import torch

from backend.executors.torch_engine import kernels
from backend.executors.torch_engine.compiled_ops import Block, balanced_bounds
from backend.executors.torch_engine.product_kernel import GROUP, OUTPUTS, compile_product
from backend.executors.torch_engine.team import MAX_THREADS
from backend.executors.torch_engine.weights import Quantised

# Up to so many rows it beat oneDNN's bf16 product of the same matrix: on two cores of AMD Zen 4 by 15 % at the limits.
_MAX_ROWS = {4: 16, 8: 8}
_MAX_ROWS_WITH_AMX = {4: 7, 8: 1}  # matrix units multiply bf16 faster than this kernel does


class CompiledProduct:
    """x bf16 [n, in] -> x W^T [n, out] in `out_dtype`; W lies in `tiles`, see `product_kernel`."""

    def __init__(self, tiles: torch.Tensor, bits: int, out_dtype: torch.dtype) -> None:
        num_items, num_groups, _ = tiles.shape
        num_threads = min(torch.get_num_threads(), MAX_THREADS)
        self.max_rows = (_MAX_ROWS_WITH_AMX if torch.cpu.get_capabilities().get("amx_tile") else _MAX_ROWS)[bits]
        self.num_outputs = num_items * OUTPUTS
        self.tiles = tiles
        self._num_columns = num_groups * GROUP
        self._out_dtype = out_dtype
        self._scratch = torch.empty(num_threads * self.max_rows * num_groups)
        self.block = Block(compile_product(bits, out_dtype is torch.bfloat16), num_threads)
        self.block.set_addresses({kernels.CODES: tiles, kernels.SCRATCH: self._scratch})
        self.block.set_arrays({kernels.BOUNDS: balanced_bounds(np.ones(num_items), num_threads)})
        self.block.fields[kernels.WIDTH] = self._num_columns
        self.block.fields[kernels.OUT_WIDTH] = self.num_outputs

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) <= self.max_rows, f"{len(x)} rows"
        assert x.shape[1] == self._num_columns
        assert x.dtype is torch.bfloat16
        x = x.contiguous()
        out = torch.empty((len(x), self.num_outputs), dtype=self._out_dtype)
        self.block.set_addresses({kernels.X: x, kernels.OUT: out})
        self.block.fields[kernels.NUM_ROWS] = len(x)
        self.block.run()
        return out


def four_bit_product(matrix: Quantised) -> CompiledProduct | None:
    """Return the product whose results are bf16; None where the kernel does not run."""
    num_outputs, num_columns = matrix.codes.shape
    if not can_multiply(num_outputs, num_columns):
        return None
    shape = num_outputs // OUTPUTS, num_columns // GROUP
    codes = matrix.codes.view(shape[0], OUTPUTS, shape[1], 4, 4, 2).to(torch.int16)
    codes = codes.permute(4, 0, 2, 3, 1, 5)  # the four codes of a word lie 8 columns wide, two columns to a pair
    words = codes[0] | codes[1] << 4 | codes[2] << 8 | codes[3] << 12
    parts = [words.reshape(*shape, -1), _scale_words(matrix.scales), _scale_words(matrix.minima)]
    return CompiledProduct(torch.cat(parts, -1), 4, torch.bfloat16)


def eight_bit_product(codes: torch.Tensor, scales: torch.Tensor) -> CompiledProduct | None:
    """Return the product by codes int8 [out, in] and scales [out, in / 32], in float32; None as above."""
    num_outputs, num_columns = codes.shape
    if not can_multiply(num_outputs, num_columns):
        return None
    shape = num_outputs // OUTPUTS, num_columns // GROUP
    pairs = codes.view(shape[0], OUTPUTS, shape[1], GROUP // 2, 2).permute(0, 2, 3, 1, 4)
    parts = [pairs.reshape(*shape, -1).view(torch.int16), _scale_words(scales)]
    return CompiledProduct(torch.cat(parts, -1), 8, torch.float32)


def can_multiply(num_outputs: int, num_columns: int) -> bool:
    """True where the kernel runs on this processor and the matrix falls into whole tiles."""
    capabilities = torch.cpu.get_capabilities()
    has_instructions = capabilities.get("avx512_bf16") and capabilities.get("avx512_bw")
    return bool(has_instructions) and num_outputs % OUTPUTS == 0 and num_columns % GROUP == 0


def _scale_words(scales: torch.Tensor) -> torch.Tensor:
    """Return the float16 of each tile [out / 16, groups, 16], as words."""
    return scales.half().view(len(scales) // OUTPUTS, OUTPUTS, -1).transpose(1, 2).contiguous().view(torch.int16)
