"""The processor: what torch says and may use becomes one value, and no value contradicts itself."""

from __future__ import annotations

import pytest
import torch

from backend.executors.torch_engine.processor import Processor, detect

FLAGS = {
    "cpu_name": "a processor",
    "avx2": True,
    "fma3": True,
    "avx512_f": True,
    "avx512_bw": True,
    "avx512_bf16": True,
}


def detect_with(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], level: str = "AVX512", *, may_use_bf16: bool = True
) -> Processor:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: may_use_bf16)
    return detect.__wrapped__()


@pytest.mark.parametrize(
    ("flags", "isa", "has_bf16_products"),
    [
        (FLAGS | {"amx_tile": True}, "AMX", True),
        (FLAGS, "AVX-512 BF16", True),
        (FLAGS | {"avx512_bf16": False}, "AVX-512", False),
        (FLAGS | {"avx512_f": False}, "AVX2", False),
        (FLAGS | {"fma3": False}, "generic", False),
        ({}, "generic", False),
    ],
)
def test_the_flags_of_a_processor_become_its_highest_instruction_set(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], isa: str, has_bf16_products: bool
) -> None:
    processor = detect_with(monkeypatch, flags)
    assert (processor.isa, processor.has_bf16_products) == (isa, has_bf16_products)


@pytest.mark.parametrize(("level", "isa"), [("AVX512", "AVX-512 BF16"), ("AVX2", "AVX2"), ("DEFAULT", "generic")])
def test_what_torch_may_not_use_is_not_there(monkeypatch: pytest.MonkeyPatch, level: str, isa: str) -> None:
    assert detect_with(monkeypatch, FLAGS, level).isa == isa


def test_what_onednn_may_not_use_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect_with(monkeypatch, FLAGS, may_use_bf16=False).isa == "AVX-512"


def test_a_forged_processor_cannot_have_more_without_less() -> None:
    with pytest.raises(AssertionError, match="no processor has"):
        Processor("forged", has_avx2=False, has_avx512=True, has_avx512_bf16=False, has_amx=False, has_onednn=True)
