"""Devices: the plain torch path keeps every tensor on the model's (run on `meta`), and CUDA gets the paged kernel."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from backend.core.errors import ConfigError
from backend.core.executor import ExecutorCapacity
from backend.executors.torch_engine.attention import TorchAttention
from backend.executors.torch_engine.attention_choice import Kernels, Place, choose_kernels
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import TorchLayerOps
from backend.executors.torch_engine.linear import Linear, PlainProduct, RowRange
from backend.executors.torch_engine.llama import LlamaLayer, LlamaModel, LlamaWeights
from backend.executors.torch_engine.processor import detect
from backend.executors.torch_engine.settings import AttentionKernel
from tests.backend.executors.torch_engine.test_compiled_ops import make_config, make_inputs

META = torch.device("meta")
CAPACITY = ExecutorCapacity(16, 64, 0, 128, 64, 8)


def make_meta_model(dtype: torch.dtype) -> LlamaModel:
    config = make_config()
    hidden, heads = config.hidden_size, config.num_heads * config.head_size
    kv = config.num_kv_heads * config.head_size

    def linear(num_rows: int, num_columns: int) -> Linear:
        weight = torch.empty((num_rows, num_columns), dtype=dtype, device=META)
        return Linear([RowRange(None, PlainProduct(weight))])

    norm = torch.empty(hidden, device=META)
    layer = LlamaLayer(
        norm,
        linear(heads + 2 * kv, hidden),
        linear(hidden, heads),
        norm,
        linear(2 * config.intermediate_size, hidden),
        linear(hidden, config.intermediate_size),
    )
    embedding = torch.empty((config.vocab_size, hidden), dtype=dtype, device=META)
    weights = LlamaWeights(embedding, [layer] * config.num_layers, norm, linear(config.vocab_size, hidden))
    pool = KVPool(KVShape(config.num_layers, config.num_kv_heads, config.head_size, dtype), 1024, 0, META)
    return LlamaModel(weights, TorchLayerOps(config, pool, TorchAttention(pool)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_float32_and_stay_on_the_device(dtype: torch.dtype) -> None:
    logits = make_meta_model(dtype).forward(make_inputs([(100, 1), (0, 50), (7, 3)]))
    assert (logits.shape, logits.dtype, logits.device) == ((3, 64), torch.float32, META)


def make_device_pool(device: str, head_size: int) -> Any:
    """What the choice of a kernel reads of a pool; torch's CPU build makes no tensor on CUDA."""
    return SimpleNamespace(
        storage=SimpleNamespace(device=torch.device(device)), shape=KVShape(1, 2, head_size, torch.bfloat16)
    )


def pretend_triton(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, is_installed: bool) -> type:
    """Pretend that a device is here, and perhaps Triton's language; return the kernel's class."""
    kernel = type("PagedAttention", (), {"__init__": lambda *_: None})
    module = ModuleType("paged_attention")
    module.PagedAttention = kernel  # type: ignore[attr-defined] # a module made here
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.language", ModuleType("triton.language") if is_installed else None)
    monkeypatch.setitem(sys.modules, "backend.executors.torch_engine.paged_attention", module)
    return kernel


def chosen_kernels(device: str, head_size: int) -> Kernels:
    return choose_kernels(AttentionKernel.AUTO, Place(make_device_pool(device, head_size), 6, CAPACITY, detect()))


def test_cuda_attends_by_the_paged_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_triton(monkeypatch, (8, 0), is_installed=True)
    assert chosen_kernels("cuda:0", 256).kernel is AttentionKernel.PAGED


@pytest.mark.parametrize(
    ("head_size", "capability", "is_installed", "reason"),
    [
        (257, (8, 0), True, "need heads of at most 256, not 257"),
        (64, (7, 5), True, "need compute capability (8, 0), not (7, 5)"),
        (64, (8, 0), False, "need the Triton language: "),
    ],
)
def test_what_cannot_run_the_paged_kernel_attends_by_torch_and_says_why(
    head_size: int,
    capability: tuple[int, int],
    is_installed: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretend_triton(monkeypatch, capability, is_installed=is_installed)
    with caplog.at_level(logging.WARNING):
        assert chosen_kernels("cuda:0", head_size).kernel is AttentionKernel.TORCH
    assert reason in caplog.text


def test_kernels_that_are_asked_for_and_do_not_run_are_refused() -> None:
    place = Place(make_device_pool("meta", 64), 6, CAPACITY, detect())
    with pytest.raises(ConfigError, match="'paged' needs a CUDA device"):
        choose_kernels(AttentionKernel.PAGED, place)
    with pytest.raises(ConfigError, match="'compiled' needs a CPU"):
        choose_kernels(AttentionKernel.COMPILED, place)
