"""Matrix products in the format that is cheapest for the number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

INT4_GROUP = 32
_TYPICAL_ROWS = 16  # what oneDNN lays the weights out for; the layout it chooses is the same from 1 to 512 rows


class QuantisedProduct(Protocol):
    """A product with the same matrix in fewer bits, which wins while there are few rows."""

    @property
    def max_rows(self) -> int: ...
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class Linear:
    """x [N, in] -> x W^T [N, out]. On the CPU the weights lie in oneDNN's own layout; few rows go to `quantised`.

    In float32 each row's result is the same, bit for bit, whatever the other rows: oneDNN adds up in an order that
    depends on the weights' shape only, but for single rows, which are therefore computed as two.
    """

    __slots__ = ("_is_laid_out", "_weight", "quantised")

    def __init__(self, weight: torch.Tensor, quantised: QuantisedProduct | None = None) -> None:
        self.quantised = quantised
        self._is_laid_out = can_lay_out(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS) if self._is_laid_out else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.quantised is not None and len(x) <= self.quantised.max_rows:
            return self.quantised(x)
        if not self._is_laid_out:
            return F.linear(x, self._weight)
        if len(x) == 1 and x.dtype is torch.float32:
            return _laid_out_product(x.repeat(2, 1), self._weight)[:1]
        return _laid_out_product(x, self._weight)


def can_lay_out(weight: torch.Tensor) -> bool:
    """True where oneDNN multiplies this dtype on this machine."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return weight.dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True, slots=True)
class Int4Product:
    """x [n, in] -> x W^T by torch's 4-bit kernel; codes and scales as `Quantised.packed` returns them."""

    codes: torch.Tensor
    scales_and_zeros: torch.Tensor
    max_rows: int = 7  # on two CPUs; compare `python -m bench.engine --weights dense`

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.codes, INT4_GROUP, self.scales_and_zeros
        )
        return product


def _laid_out_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product
