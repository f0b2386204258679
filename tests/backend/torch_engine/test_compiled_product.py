"""The compiled 4-bit and 8-bit products against the dense ones; a row's result is the same bit for bit in any batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from backend.executors.torch_engine.compiled_product import (
    CompiledProduct,
    can_multiply,
    eight_bit_product,
    four_bit_product,
)
from backend.executors.torch_engine.weights import Quantised

NUM_OUTPUTS, NUM_COLUMNS = 80, 96
Make = Callable[[], tuple[CompiledProduct, torch.Tensor]]

needs_kernel = pytest.mark.skipif(
    not can_multiply(NUM_OUTPUTS, NUM_COLUMNS), reason="the processor has no AVX-512 BF16"
)


def make_four_bit() -> tuple[CompiledProduct, torch.Tensor]:
    """A product and its dense matrix; scales are float16 numbers, as in the files."""
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (NUM_OUTPUTS, NUM_COLUMNS), dtype=torch.uint8)
    scales, minima = (torch.randn((NUM_OUTPUTS, NUM_COLUMNS // 32)).half().float() for _ in range(2))
    matrix = Quantised(codes, scales, minima)
    product = four_bit_product(matrix)
    assert product is not None
    return product, matrix.dense()


def make_eight_bit() -> tuple[CompiledProduct, torch.Tensor]:
    torch.manual_seed(0)
    codes = torch.randint(-128, 128, (NUM_OUTPUTS, NUM_COLUMNS), dtype=torch.int8)
    scales = torch.randn((NUM_OUTPUTS, NUM_COLUMNS // 32)).half().float()
    product = eight_bit_product(codes, scales)
    assert product is not None
    return product, codes.float() * scales.repeat_interleave(32, 1)


@needs_kernel
@pytest.mark.parametrize(("make", "tolerance"), [(make_four_bit, 1 / 256), (make_eight_bit, 1e-5)])
def test_a_product_equals_the_dense_one_for_every_number_of_rows(make: Make, tolerance: float) -> None:
    product, dense = make()
    for num_rows in range(1, product.max_rows + 1):
        x = torch.randn((num_rows, NUM_COLUMNS)).bfloat16()
        expected = x.float() @ dense.T
        slack = 1e-5 * float(expected.abs().max())  # sums whose terms cancel
        torch.testing.assert_close(product(x).float(), expected, rtol=tolerance, atol=slack)


@needs_kernel
@pytest.mark.parametrize("make", [make_four_bit, make_eight_bit])
def test_a_row_is_the_same_alone_and_in_any_batch(make: Make) -> None:
    product, _ = make()
    x = torch.randn((product.max_rows, NUM_COLUMNS)).bfloat16()
    alone = torch.cat([product(row[None]) for row in x])
    for num_rows in range(1, product.max_rows + 1):
        assert torch.equal(product(x[:num_rows]), alone[:num_rows])


def test_a_matrix_that_is_no_whole_number_of_tiles_is_refused() -> None:
    assert eight_bit_product(torch.zeros((50, 96), dtype=torch.int8), torch.zeros((50, 3))) is None
