"""Matrix products in the format that is cheapest for the number of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Rows up to which 4-bit weights beat bf16 ones (two CPUs tried; compare `python -m bench.engine --weights dense`).
MAX_INT4_ROWS = 7
INT4_GROUP = 32
_TYPICAL_ROWS = 16  # what oneDNN lays the weights out for; the layout it chooses is the same from 1 to 512 rows


class Linear:
    """x [N, in] -> x W^T [N, out]. On the CPU the weights lie in oneDNN's own layout, and for few rows in 4 bits.

    In float32 each row's result is the same, bit for bit, whatever the other rows: oneDNN adds up in an order that
    depends on the weights' shape only, but for single rows, which are therefore computed as two.
    """

    __slots__ = ("_int4", "_is_laid_out", "_weight")

    def __init__(self, weight: torch.Tensor, int4: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        self._int4 = int4
        self._is_laid_out = can_lay_out(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS) if self._is_laid_out else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._int4 is not None and len(x) <= MAX_INT4_ROWS:
            return _int4_product(x, *self._int4)
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


def _int4_product(x: torch.Tensor, codes: torch.Tensor, scales_and_zeros: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, INT4_GROUP, scales_and_zeros)
    return product


def _laid_out_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product
