"""The processor's instruction sets, detected once. No other module asks torch or oneDNN for them.

A `Processor` is a plain value, so a test can make one. Our own kernels use no instruction set that torch or oneDNN are
forbidden to use (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Processor:
    """The instruction sets that a choice of kernel depends on; `name` is the maker's own name of the processor."""

    name: str
    has_avx2: bool
    has_avx512: bool
    has_avx512_bf16: bool
    has_amx: bool
    has_onednn: bool  # torch was built with it

    def __post_init__(self) -> None:
        ladder = (self.has_avx2, self.has_avx512, self.has_avx512_bf16, self.has_amx)
        assert list(ladder) == sorted(ladder, reverse=True), f"no processor has {self}"

    @property
    def has_bf16_products(self) -> bool:
        """Whether bf16 products run on instructions of their own; emulated ones lose to float32."""
        return self.has_onednn and (self.has_avx512_bf16 or self.has_amx)

    @property
    def isa(self) -> str:
        """The highest instruction set, in words."""
        ladder = {
            "AMX": self.has_amx,
            "AVX-512 BF16": self.has_avx512_bf16,
            "AVX-512": self.has_avx512,
            "AVX2": self.has_avx2,
        }
        return next((name for name, is_there in ladder.items() if is_there), "generic")


@functools.cache
def detect() -> Processor:
    """Ask torch what this machine has and what torch may use."""
    flags = torch.cpu.get_capabilities()
    level = torch.backends.cpu.get_cpu_capability()
    has_avx2 = bool(flags.get("avx2") and flags.get("fma3")) and level in ("AVX2", "AVX512")
    has_avx512 = has_avx2 and bool(flags.get("avx512_f") and flags.get("avx512_bw")) and level == "AVX512"
    has_onednn = bool(torch._C._has_mkldnn)
    may_use_bf16 = has_avx512 and has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    has_bf16 = may_use_bf16 and bool(flags.get("avx512_bf16"))
    return Processor(
        name=str(flags.get("cpu_name", "unknown processor")),
        has_avx2=has_avx2,
        has_avx512=has_avx512,
        has_avx512_bf16=has_bf16,
        has_amx=has_bf16 and bool(flags.get("amx_tile")),
        has_onednn=has_onednn,
    )
