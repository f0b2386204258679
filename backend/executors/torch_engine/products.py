"""Which products a matrix can have on a processor: the one ordered table of formats, and who makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from backend.executors.torch_engine.linear import LaidOutProduct, PlainProduct, Product
from backend.executors.torch_engine.processor import Processor
from backend.executors.torch_engine.settings import MAX_QUANTISED_ROWS, WeightFormat
from backend.executors.torch_engine.weights import EightBit, Quantised


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [out, in] as its file holds it.

    kind: which of the model's matrices ("qkv"); those of one kind get the same formats. dense: returns it unquantised.
    codes: the same in 4 or 8 bits; None where the file has none. is_head: its results are logits, in float32.
    """

    kind: str
    shape: tuple[int, int]
    dense: Callable[[], torch.Tensor]
    codes: Quantised | EightBit | None = None
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """The machine and dtype that products are made for; `dtype` is that of the activations."""

    processor: Processor
    device: torch.device
    dtype: torch.dtype
    has_compiled_kernels: bool
    weights: WeightFormat = WeightFormat.AUTO

    @property
    def is_bf16_on_cpu(self) -> bool:
        return self.device.type == "cpu" and self.dtype is torch.bfloat16


@dataclass(frozen=True, slots=True)
class Format:
    """A way to keep a matrix and multiply by it, for up to `max_rows` rows (None: any number).

    default_rows: up to how many rows it is taken where nothing is measured.
    """

    name: str
    exists: Callable[[Matrix, Target], bool]
    make: Callable[[Matrix, Target], Product]
    max_rows: int | None = None
    default_rows: int | None = None


def _has_codes(kind: type[Quantised] | type[EightBit]) -> Callable[[Matrix, Target], bool]:
    def exists(matrix: Matrix, target: Target) -> bool:
        is_wanted = target.is_bf16_on_cpu and target.processor.has_avx2 and target.weights is WeightFormat.AUTO
        return is_wanted and isinstance(matrix.codes, kind) and target.has_compiled_kernels and _has_tiles(matrix)

    return exists


def _has_tiles(matrix: Matrix) -> bool:
    from backend.executors.torch_engine.compiled_product import falls_into_tiles

    return falls_into_tiles(*matrix.shape)


def _make_coded(matrix: Matrix, target: Target) -> Product:
    from backend.executors.torch_engine.compiled_product import eight_bit_product, four_bit_product

    out = torch.float32 if matrix.is_head else torch.bfloat16
    if isinstance(matrix.codes, Quantised):
        return four_bit_product(matrix.codes, out, target.processor)
    assert matrix.codes is not None
    return eight_bit_product(matrix.codes, out, target.processor)


def _has_bf16(_matrix: Matrix, target: Target) -> bool:
    """Emulated products lose to float32, so they are taken only where they are asked for."""
    if not target.is_bf16_on_cpu or target.weights is WeightFormat.FLOAT32:
        return False
    return target.processor.has_bf16_products or target.weights is WeightFormat.BF16


def _has_float32(_matrix: Matrix, target: Target) -> bool:
    """Where the processor multiplies bf16 itself, float32 always loses to it and costs twice the memory."""
    if target.device.type != "cpu" or not target.processor.has_onednn:
        return False
    return target.dtype is torch.float32 or not _has_bf16(_matrix, target)


def _make_laid_out(dtype: torch.dtype) -> Callable[[Matrix, Target], Product]:
    return lambda matrix, target: LaidOutProduct(
        matrix.dense().to(dtype), torch.float32 if matrix.is_head else target.dtype
    )


def _make_plain(matrix: Matrix, target: Target) -> Product:
    return PlainProduct(matrix.dense().to(target.device, target.dtype).contiguous())


# In order of preference where nothing is measured. The last one that exists takes any number of rows.
FORMATS = (
    Format("4-bit", _has_codes(Quantised), _make_coded, MAX_QUANTISED_ROWS, default_rows=8),
    Format("8-bit", _has_codes(EightBit), _make_coded, MAX_QUANTISED_ROWS, default_rows=4),
    Format("bf16", _has_bf16, _make_laid_out(torch.bfloat16)),
    Format("float32", _has_float32, _make_laid_out(torch.float32)),
    Format("plain", lambda _matrix, _target: True, _make_plain),
)


def formats_for(matrix: Matrix, target: Target) -> list[Format]:
    """Return the formats that exist for a matrix; only the last, which always exists, takes any number of rows."""
    existing = [each for each in FORMATS if each.exists(matrix, target)]
    first_unlimited = next(i for i, each in enumerate(existing) if each.max_rows is None)
    return existing[: first_unlimited + 1]
