"""Matrix products by the format that is cheapest for the number of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Rows up to which 4-bit weights beat bf16 ones on the CPU: facts in docs/torch_engine.md.
MAX_INT4_ROWS = 8
INT4_GROUP = 32


class Linear:
    """x [N, in] -> x W^T [N, out]: 4-bit weights for few rows where they exist, dense ones otherwise."""

    __slots__ = ("_dense", "_packed", "_scales_and_zeros")

    def __init__(
        self, dense: torch.Tensor, packed: torch.Tensor | None = None, scales: torch.Tensor | None = None
    ) -> None:
        self._dense = dense
        self._packed = packed
        self._scales_and_zeros = scales

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is not None and len(x) <= MAX_INT4_ROWS:
            product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x, self._packed, INT4_GROUP, self._scales_and_zeros
            )
            return product
        return F.linear(x, self._dense)
