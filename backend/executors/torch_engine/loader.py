"""Puts a TorchExecutor together: model, KV pools, attention and sampler, as the settings say."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from backend.errors import ConfigError
from backend.executors import ExecutorCapacity
from backend.executors.torch_engine.attention import SlotAttention, TorchAttention
from backend.executors.torch_engine.executor import Model, TorchExecutor
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import LayerOps, LlamaConfig, TorchLayerOps
from backend.executors.torch_engine.library_model import (
    LibraryModel,
    kv_shape,
    library_config_of,
    load_library_model,
    read_config,
)
from backend.executors.torch_engine.llama import LlamaModel, LlamaWeights, SmallStepLayers
from backend.executors.torch_engine.llama_config import config_from_gguf, config_from_library, require_readable
from backend.executors.torch_engine.llama_loader import WeightForm, load_weights
from backend.executors.torch_engine.memory import plan_capacity
from backend.executors.torch_engine.probe import probe_tokens
from backend.executors.torch_engine.reference import library_llama, plain_llama, sampled_rows
from backend.executors.torch_engine.sampler import Sampler
from backend.executors.torch_engine.served_exactly import check_library, check_own, is_long_enough
from backend.executors.torch_engine.settings import AttentionKernel, Dtype, ModelPath, TorchSettings, WeightFormat
from backend.executors.torch_engine.weights import DirectorySource, GGUFSource, TensorSource
from backend.gguf_file import read_gguf
from backend.model_files import ModelFiles, resolve_model
from backend.tokenizer_files import read_eos_ids

_log = logging.getLogger(__name__)
Report = Callable[[str, float], None]
_PROBED_LAYERS = 2


@dataclass(frozen=True, slots=True)
class _Found:
    """A model's files and configuration. `llama`: where our own layers can run it. `library`: absent for such GGUFs."""

    files: ModelFiles
    library: Any | None
    llama: tuple[LlamaConfig, TensorSource] | None

    @property
    def name(self) -> str:
        family = "llama" if self.library is None else self.library.model_type
        return f"model {str(self.files.path)!r} ({family})"


def load_executor(settings: TorchSettings, report: Report) -> TorchExecutor:
    """See `torch_engine.load`."""
    torch.set_num_threads(settings.num_threads or len(os.sched_getaffinity(0)))
    report("reading the model's header", 0.0)
    found = _find(resolve_model(settings.model_path))
    if found.llama is not None and settings.layers is not ModelPath.LIBRARY:
        return _load_own(settings, found, *found.llama, report)
    if settings.layers is ModelPath.OWN:
        raise ConfigError(f"torch.layers: 'own', but model {str(found.files.path)!r} is no plain Llama; use 'auto'")
    return _load_library(settings, found, report)


def _find(files: ModelFiles) -> _Found:
    """Read the configuration; raises ConfigError where we cannot run the model exactly."""
    if files.is_gguf:
        gguf = read_gguf(files.path)
        if (config := config_from_gguf(gguf)) is not None:
            return _Found(files, None, (config, GGUFSource(gguf, config.num_heads, config.num_kv_heads)))
        require_readable(gguf)
    library = read_config(files)
    if files.is_gguf or (config := config_from_library(library)) is None:
        return _Found(files, library, None)
    source = DirectorySource(files.path)
    if config.is_tied and source.has_own_head():
        config = dataclasses.replace(config, is_tied=False)
        library.tie_word_embeddings = False
    return _Found(files, library, (config, source))


def _load_own(
    settings: TorchSettings, found: _Found, config: LlamaConfig, source: TensorSource, report: Report
) -> TorchExecutor:
    dtype, device = _dtype(settings), torch.device(settings.device)
    has_quantised = dtype is torch.bfloat16 and device.type == "cpu" and settings.weights is not WeightFormat.DENSE
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_size, dtype)
    weight_bytes = int(config.num_parameters * (dtype.itemsize + (0.63 if has_quantised else 0.0)))
    capacity = plan_capacity(settings, shape, weight_bytes, config.max_positions)
    weights = load_weights(config, source, WeightForm(dtype, device, has_quantised), report)
    pool = _pool(shape, capacity, device, report)
    report("compiling kernels", 0.97)
    model = _own_model(settings, config, weights, pool, capacity)
    report("comparing with the reference", 0.98)
    _probe_own(settings, found, config, source, weights)
    return _executor(model, pool, found.files, capacity, report)


def _own_model(
    settings: TorchSettings, config: LlamaConfig, weights: LlamaWeights, pool: KVPool, capacity: ExecutorCapacity
) -> LlamaModel:
    attention = _attention(settings, pool, config.num_heads, capacity)
    ops = _layer_ops(config, pool, attention, capacity)
    return LlamaModel(weights, ops, _layer_program(weights, ops))


def _probe_own(
    settings: TorchSettings, found: _Found, config: LlamaConfig, source: TensorSource, weights: LlamaWeights
) -> None:
    """Compare the first layers, which differ from the others in their weights only."""
    if not is_long_enough(config.max_positions, found.name):
        return
    part = dataclasses.replace(weights, layers=weights.layers[:_PROBED_LAYERS])
    rows = sampled_rows(config.vocab_size, torch.cat(probe_tokens(config.vocab_size)))
    reference = (
        plain_llama(config, source, len(part.layers), rows)
        if found.library is None
        else library_llama(found.library, source, len(part.layers), rows)
    )
    device = torch.device(settings.device)
    shape = KVShape(len(part.layers), config.num_kv_heads, config.head_size, _dtype(settings))
    make = partial(_own_model, settings, config, part)
    check_own(found.name, config.vocab_size, shape, device, make, reference)


def _load_library(settings: TorchSettings, found: _Found, report: Report) -> TorchExecutor:
    dtype, device = _dtype(settings), torch.device(settings.device)
    config = library_config_of(found.llama[0]) if found.library is None and found.llama else found.library
    assert config is not None, "neither we nor the library read a configuration"
    shape = kv_shape(config, dtype)
    capacity = plan_capacity(settings, shape, _stored_bytes(found.files), config.max_position_embeddings)
    report("loading weights", 0.1)
    library_model = load_library_model(found.files, dtype, device, found.llama)

    def make(pool: KVPool, capacity: ExecutorCapacity) -> LibraryModel:
        return LibraryModel(library_model, pool, _attention(settings, pool, config.num_attention_heads, capacity))

    report("comparing with the library's own attention", 0.9)
    if is_long_enough(config.max_position_embeddings, found.name):
        check_library(found.name, library_model, config, dtype, make)
    pool = _pool(shape, capacity, device, report)
    return _executor(make(pool, capacity), pool, found.files, capacity, report)


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
    capacity = dataclasses.replace(capacity, host_copy_s_per_token=pool.measure_copy_s_per_token())
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
