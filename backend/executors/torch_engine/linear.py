"""Matrix products in the format that is fastest for the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_TYPICAL_ROWS = 16  # what oneDNN lays the weights out for; the layout it chooses is the same from 1 to 512 rows

Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class RowRange:
    """The product for up to `max_rows` rows; None: for any number."""

    max_rows: int | None
    product: Product


class Linear:
    """x [N, in] -> x W^T [N, out] by the first of `ranges` that takes N rows; the last takes any number.

    In float32 each row's result is the same, bit for bit, whatever the other rows: see `LaidOutProduct`.
    """

    __slots__ = ("ranges",)

    def __init__(self, ranges: Sequence[RowRange]) -> None:
        assert ranges[-1].max_rows is None, "the last product takes any number of rows"
        self.ranges = tuple(ranges)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = len(x)
        for each in self.ranges:
            if each.max_rows is None or num_rows <= each.max_rows:
                return each.product(x)
        raise AssertionError(f"no product for {num_rows} rows")


class PlainProduct:
    """torch's own product, on any device."""

    __slots__ = ("_weight",)

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight)


class LaidOutProduct:
    """The product by weights that lie in oneDNN's own layout; x of another dtype is converted, the result is `out`.

    float32: oneDNN adds up in an order that depends on the weights' shape only, but for single rows, which are
    therefore computed as two.
    """

    __slots__ = ("_dtype", "_out", "_weight")

    def __init__(self, weight: torch.Tensor, out: torch.dtype) -> None:
        self._dtype, self._out = weight.dtype, out
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self._dtype)
        if len(x) == 1 and self._dtype is torch.float32:
            return self._multiply(x.repeat(2, 1))[:1]
        return self._multiply(x)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return product.to(self._out)
