"""Puts a TorchExecutor together: model, KV pools, attention and sampler, as the settings say."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable

import torch

from backend.errors import ConfigError
from backend.executors import ExecutorCapacity
from backend.executors.torch_engine.attention import SlotAttention, TorchAttention
from backend.executors.torch_engine.executor import Model, TorchExecutor
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import LayerOps, LlamaConfig, TorchLayerOps
from backend.executors.torch_engine.library_model import LibraryModel, kv_shape, load_library_model, read_config
from backend.executors.torch_engine.llama import LlamaModel, LlamaWeights, SmallStepLayers
from backend.executors.torch_engine.llama_loader import (
    WeightForm,
    config_from_directory,
    config_from_gguf,
    load_weights,
)
from backend.executors.torch_engine.memory import plan_capacity
from backend.executors.torch_engine.sampler import Sampler
from backend.executors.torch_engine.settings import AttentionKernel, Dtype, ModelPath, TorchSettings, WeightFormat
from backend.executors.torch_engine.weights import DirectorySource, GGUFSource, TensorSource
from backend.gguf_file import read_gguf
from backend.model_files import ModelFiles, resolve_model
from backend.tokenizer_files import read_eos_ids

_log = logging.getLogger(__name__)
Report = Callable[[str, float], None]


def load_executor(settings: TorchSettings, report: Report) -> TorchExecutor:
    """See `torch_engine.load`."""
    torch.set_num_threads(settings.num_threads or len(os.sched_getaffinity(0)))
    report("reading the model's header", 0.0)
    files = resolve_model(settings.model_path)
    llama = _llama(files)
    if llama is not None and settings.layers is not ModelPath.LIBRARY:
        return _load_own(settings, files, *llama, report)
    if settings.layers is ModelPath.OWN:
        raise ConfigError(f"torch.layers: 'own', but model {str(files.path)!r} is no plain Llama; use 'auto'")
    return _load_library(settings, files, llama[1] if llama else None, report)


def _llama(files: ModelFiles) -> tuple[LlamaConfig, TensorSource] | None:
    """Return configuration and tensors where our own layers can run the model."""
    if not files.is_gguf:
        config = config_from_directory(files.path)
        return None if config is None else (config, DirectorySource(files.path))
    gguf = read_gguf(files.path)
    config = config_from_gguf(gguf)
    return None if config is None else (config, GGUFSource(gguf, config.num_heads, config.num_kv_heads))


def _load_own(
    settings: TorchSettings, files: ModelFiles, config: LlamaConfig, source: TensorSource, report: Report
) -> TorchExecutor:
    dtype, device = _dtype(settings), torch.device(settings.device)
    has_quantised = dtype is torch.bfloat16 and device.type == "cpu" and settings.weights is not WeightFormat.DENSE
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_size, dtype)
    weight_bytes = int(config.num_parameters * (dtype.itemsize + (0.63 if has_quantised else 0.0)))
    capacity = plan_capacity(settings, shape, weight_bytes, config.max_positions)
    weights = load_weights(config, source, WeightForm(dtype, device, has_quantised), report)
    pool = _pool(shape, capacity, device, report)
    report("compiling kernels", 0.97)
    attention = _attention(settings, pool, config.num_heads, capacity)
    ops = _layer_ops(config, pool, attention, capacity)
    model = LlamaModel(weights, ops, _layer_program(weights, ops))
    return _executor(model, pool, files, capacity, report)


def _load_library(
    settings: TorchSettings, files: ModelFiles, llama: TensorSource | None, report: Report
) -> TorchExecutor:
    dtype, device = _dtype(settings), torch.device(settings.device)
    config = read_config(files)
    shape = kv_shape(config, dtype)
    capacity = plan_capacity(settings, shape, _stored_bytes(files), config.max_position_embeddings)
    report("loading weights", 0.1)
    library_model = load_library_model(files, dtype, device, llama)
    pool = _pool(shape, capacity, device, report)
    attention = _attention(settings, pool, config.num_attention_heads, capacity)
    return _executor(LibraryModel(library_model, pool, attention), pool, files, capacity, report)


def _pool(shape: KVShape, capacity: ExecutorCapacity, device: torch.device, report: Report) -> KVPool:
    report("allocating KV", 0.95)
    return KVPool(shape, capacity.num_blocks * capacity.block_size, capacity.num_host_slots, device)


def _attention(settings: TorchSettings, pool: KVPool, num_heads: int, capacity: ExecutorCapacity) -> SlotAttention:
    """Choose the compiled kernel where it runs, plain torch otherwise."""
    if settings.attention is AttentionKernel.TORCH or pool.storage.device.type != "cpu":
        return TorchAttention(pool)
    try:
        from backend.executors.torch_engine.compiled_ops import CompiledAttention
    except ImportError as error:
        if settings.attention is AttentionKernel.COMPILED:
            raise ConfigError(f"torch.attention: 'compiled' needs numba: {error}") from error
        _log.warning("no compiled kernels, steps will be slower: %s", error)
        return TorchAttention(pool)
    return CompiledAttention(pool, num_heads, capacity.max_tokens_per_step, capacity.max_seq_len)


def _layer_ops(config: LlamaConfig, pool: KVPool, attention: SlotAttention, capacity: ExecutorCapacity) -> LayerOps:
    """Compiled operations go with compiled attention, where the sizes are multiples of a vector."""
    if isinstance(attention, TorchAttention) or config.hidden_size % 16 or config.intermediate_size % 16:
        return TorchLayerOps(config, pool, attention)
    from backend.executors.torch_engine.compiled_ops import CompiledAttention, CompiledLayerOps

    assert isinstance(attention, CompiledAttention)
    return CompiledLayerOps(config, pool, attention, capacity.max_tokens_per_step)


def _layer_program(weights: LlamaWeights, ops: LayerOps) -> SmallStepLayers | None:
    """Return the layers as one program where all they do is compiled."""
    if isinstance(ops, TorchLayerOps):
        return None
    from backend.executors.torch_engine.compiled_ops import CompiledLayerOps
    from backend.executors.torch_engine.layer_program import layer_program

    assert isinstance(ops, CompiledLayerOps)
    return layer_program(weights, ops)


def _executor(
    model: Model, pool: KVPool, files: ModelFiles, capacity: ExecutorCapacity, report: Report
) -> TorchExecutor:
    copy_s = pool.measure_copy_s_per_token()
    capacity = dataclasses.replace(capacity, host_copy_s_per_token=copy_s, vocab_size=model.vocab_size)
    report("ready", 1.0)
    return TorchExecutor(model, pool, Sampler(read_eos_ids(files)), capacity)


def _dtype(settings: TorchSettings) -> torch.dtype:
    if settings.dtype is Dtype.FLOAT32:
        return torch.float32
    has_bf16 = settings.device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if settings.dtype is Dtype.BF16 or has_bf16 else torch.float32


def _stored_bytes(files: ModelFiles) -> int:
    """The size of the files is close to what the library's weights take, and a lower bound where they are 4-bit."""
    if files.is_gguf:
        return files.path.stat().st_size
    return sum(file.stat().st_size for file in files.path.glob("*.safetensors"))
