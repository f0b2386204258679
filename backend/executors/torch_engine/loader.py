"""Puts a TorchExecutor together: model, KV pools, attention and sampler, as the settings say."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from backend.errors import ConfigError
from backend.executors import ExecutorCapacity
from backend.executors.torch_engine.attention import TorchAttention
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.llama import LlamaConfig
from backend.executors.torch_engine.llama_loader import (
    LlamaLoader,
    config_from_directory,
    config_from_gguf,
    directory_source,
    gguf_source,
)
from backend.executors.torch_engine.sampler import Sampler
from backend.executors.torch_engine.settings import Dtype, TorchSettings, WeightFormat
from backend.gguf_file import read_gguf
from backend.model_files import resolve_model
from backend.tokenizer_files import read_eos_ids

_GIB = 1 << 30
_KV_SHARE_OF_FREE_MEMORY = 0.25


def load_executor(settings: TorchSettings, report: Callable[[str, float], None]) -> TorchExecutor:
    """See `torch_engine.load`."""
    torch.set_num_threads(settings.num_threads or len(os.sched_getaffinity(0)))
    report("reading the model's header", 0.0)
    files = resolve_model(settings.model_path)
    dtype = _dtype(settings)
    if files.is_gguf:
        gguf = read_gguf(files.path)
        config = config_from_gguf(gguf)
        source = gguf_source(gguf, config) if config else None
    else:
        config = config_from_directory(files.path)
        source = directory_source(files.path)
    if config is None or source is None:
        raise ConfigError(f"model {str(files.path)!r} is no Llama-family model")
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_size, dtype)
    wants_int4 = dtype is torch.bfloat16 and settings.weights is not WeightFormat.DENSE
    model = LlamaLoader(config, source, dtype, wants_int4).load(report)
    capacity = _capacity(settings, shape, config)
    report("allocating KV", 1.0)
    num_slots = capacity.num_blocks * capacity.block_size
    pool = KVPool(shape, num_slots, capacity.num_host_slots, torch.device(settings.device))
    return TorchExecutor(model, pool, TorchAttention(), Sampler(read_eos_ids(files)), capacity)


def _dtype(settings: TorchSettings) -> torch.dtype:
    if settings.dtype is Dtype.AUTO:
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16 if settings.dtype is Dtype.BF16 else torch.float32


def _capacity(settings: TorchSettings, shape: KVShape, config: LlamaConfig) -> ExecutorCapacity:
    if settings.num_kv_tokens is not None:
        num_tokens = settings.num_kv_tokens
    elif settings.kv_gib is not None:
        num_tokens = int(settings.kv_gib * _GIB) // shape.bytes_per_token
    else:
        num_tokens = int(_free_memory_bytes() * _KV_SHARE_OF_FREE_MEMORY) // shape.bytes_per_token
    return ExecutorCapacity(
        block_size=settings.block_size,
        num_blocks=num_tokens // settings.block_size,
        num_host_slots=int(settings.host_kv_gib * _GIB) // shape.bytes_per_token,
        max_seq_len=min(settings.max_model_len or config.max_positions, config.max_positions),
        max_tokens_per_step=settings.max_tokens_per_step,
        max_seqs_per_step=settings.max_seqs_per_step,
    )


def _free_memory_bytes() -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    raise ConfigError("torch.kv_gib: give a size; the free memory of this machine is unknown")
