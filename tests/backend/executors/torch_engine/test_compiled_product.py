"""The compiled 4-bit and 8-bit products against the dense ones; a row's result is the same bit for bit in any batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from backend.executors.torch_engine.compiled_product import (
    CompiledProduct,
    eight_bit_product,
    falls_into_tiles,
    four_bit_product,
)
from backend.executors.torch_engine.processor import Processor, detect
from backend.executors.torch_engine.settings import MAX_QUANTISED_ROWS
from backend.executors.torch_engine.weights import EightBit, Quantised

NUM_OUTPUTS, NUM_COLUMNS = 80, 96
Make = Callable[[Processor], tuple[CompiledProduct, torch.Tensor]]


needs_float16 = pytest.mark.skipif(
    not detect().has_avx2, reason="scales are float16, which only AVX2 processors convert"
)


def lower_processors() -> list[Processor]:
    """This machine, and itself with ever fewer instruction sets: each runs other kernels."""
    processors = [detect()]
    for name in ("has_amx", "has_avx512_bf16", "has_avx512"):
        lower = dataclasses.replace(processors[-1], **{name: False})
        if lower != processors[-1]:
            processors.append(lower)
    return processors


@pytest.fixture(params=lower_processors(), ids=lambda processor: processor.isa)
def processor(request: pytest.FixtureRequest) -> Processor:
    assert isinstance(request.param, Processor)
    return request.param


def make_four_bit(processor: Processor) -> tuple[CompiledProduct, torch.Tensor]:
    """A product and its dense matrix; scales are float16 numbers, as in the files."""
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (NUM_OUTPUTS, NUM_COLUMNS), dtype=torch.uint8)
    scales, minima = (torch.randn((NUM_OUTPUTS, NUM_COLUMNS // 32)).half().float() for _ in range(2))
    matrix = Quantised(codes, scales, minima)
    return four_bit_product(matrix, torch.bfloat16, processor), matrix.dense()


def make_eight_bit(processor: Processor) -> tuple[CompiledProduct, torch.Tensor]:
    torch.manual_seed(0)
    codes = torch.randint(-128, 128, (NUM_OUTPUTS, NUM_COLUMNS), dtype=torch.int8)
    scales = torch.randn((NUM_OUTPUTS, NUM_COLUMNS // 32)).half().float()
    product = eight_bit_product(EightBit(codes, scales), torch.float32, processor)
    return product, codes.float() * scales.repeat_interleave(32, 1)


@needs_float16
@pytest.mark.parametrize(("make", "tolerance"), [(make_four_bit, 1 / 256), (make_eight_bit, 1e-5)])
def test_a_product_equals_the_dense_one_for_every_number_of_rows(
    make: Make, tolerance: float, processor: Processor
) -> None:
    product, dense = make(processor)
    for num_rows in range(1, MAX_QUANTISED_ROWS + 1):
        x = torch.randn((num_rows, NUM_COLUMNS)).bfloat16()
        expected = x.float() @ dense.T
        slack = 1e-5 * float(expected.abs().max())  # sums whose terms cancel
        torch.testing.assert_close(product(x).float(), expected, rtol=tolerance, atol=slack)


@needs_float16
@pytest.mark.parametrize("make", [make_four_bit, make_eight_bit])
def test_a_row_is_the_same_alone_and_in_any_batch(make: Make, processor: Processor) -> None:
    product, _ = make(processor)
    x = torch.randn((MAX_QUANTISED_ROWS, NUM_COLUMNS)).bfloat16()
    alone = torch.cat([product(row[None]) for row in x])
    for num_rows in range(1, MAX_QUANTISED_ROWS + 1):
        assert torch.equal(product(x[:num_rows]), alone[:num_rows])


def test_only_whole_tiles_are_multiplied() -> None:
    assert falls_into_tiles(NUM_OUTPUTS, NUM_COLUMNS)
    assert not falls_into_tiles(50, 96)
    assert not falls_into_tiles(48, 80)
