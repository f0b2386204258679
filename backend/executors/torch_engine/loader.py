"""Puts a TorchExecutor together: model, KV pools, attention and sampler, as the settings say."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from backend.errors import ConfigError
from backend.executors import ExecutorCapacity
from backend.executors.torch_engine.attention_choice import Place, choose_kernels, has_compiled_kernels
from backend.executors.torch_engine.executor import Model, TorchExecutor
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.library_model import LibraryModel, kv_shape, load_library_model, read_config
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.llama_loader import config_from_directory, config_from_gguf, load_weights
from backend.executors.torch_engine.memory import plan_capacity
from backend.executors.torch_engine.processor import Processor, detect
from backend.executors.torch_engine.product_choice import ProductChoices
from backend.executors.torch_engine.products import Target
from backend.executors.torch_engine.sampler import Sampler
from backend.executors.torch_engine.settings import Dtype, ModelPath, TorchSettings
from backend.executors.torch_engine.weights import DirectorySource, GGUFSource, TensorSource
from backend.gguf_file import read_gguf
from backend.model_files import ModelFiles, resolve_model
from backend.tokenizer_files import read_eos_ids

_log = logging.getLogger(__name__)
Report = Callable[[str, float], None]


def load_executor(settings: TorchSettings, report: Report, processor: Processor | None = None) -> TorchExecutor:
    """See `torch_engine.load`; `processor` is this machine's where None."""
    torch.set_num_threads(settings.num_threads or len(os.sched_getaffinity(0)))
    report("reading the model's header", 0.0)
    files = resolve_model(settings.model_path)
    llama = _llama(files)
    processor = processor or detect()
    if llama is not None and settings.layers is not ModelPath.LIBRARY:
        return _load_own(settings, processor, files, *llama, report)
    if settings.layers is ModelPath.OWN:
        raise ConfigError(f"torch.layers: 'own', but model {str(files.path)!r} is no plain Llama; use 'auto'")
    return _load_library(settings, processor, files, llama[1] if llama else None, report)


def _llama(files: ModelFiles) -> tuple[LlamaConfig, TensorSource] | None:
    """Return configuration and tensors where our own layers can run the model."""
    if not files.is_gguf:
        config = config_from_directory(files.path)
        return None if config is None else (config, DirectorySource(files.path))
    gguf = read_gguf(files.path)
    config = config_from_gguf(gguf)
    return None if config is None else (config, GGUFSource(gguf, config.num_heads, config.num_kv_heads))


def _load_own(
    settings: TorchSettings,
    processor: Processor,
    files: ModelFiles,
    config: LlamaConfig,
    source: TensorSource,
    report: Report,
) -> TorchExecutor:
    dtype, device = _dtype(settings), torch.device(settings.device)
    target = Target(processor, device, dtype, has_compiled_kernels(), settings.weights)
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_size, dtype)
    capacity = plan_capacity(settings, shape, _weight_bytes(config, target), config.max_positions)
    choices = ProductChoices(target, _cache_folder(settings), settings.quantised_rows)
    weights = load_weights(config, source, target, choices, report)
    pool = _pool(shape, capacity, device, report)
    report("compiling kernels", 0.97)
    place = Place(pool, config.num_heads, capacity, processor)
    kernels = choose_kernels(settings.attention, place)
    ops = kernels.layer_ops(config, place, kernels.attention(place))
    model = LlamaModel(weights, ops, kernels.small_steps(weights, ops))
    description = f"{processor.name}, {processor.isa}: {choices.describe()}; {kernels.kernel.value} attention"
    return _executor(model, pool, files, capacity, description, report)


def _load_library(
    settings: TorchSettings, processor: Processor, files: ModelFiles, llama: TensorSource | None, report: Report
) -> TorchExecutor:
    dtype, device = _library_dtype(settings, processor), torch.device(settings.device)
    config = read_config(files)
    shape = kv_shape(config, dtype)
    capacity = plan_capacity(settings, shape, _stored_bytes(files), config.max_position_embeddings)
    report("loading weights", 0.1)
    library_model = load_library_model(files, dtype, device, llama)
    pool = _pool(shape, capacity, device, report)
    place = Place(pool, config.num_attention_heads, capacity, processor)
    kernels = choose_kernels(settings.attention, place)
    model = LibraryModel(library_model, pool, kernels.attention(place))
    description = f"{processor.name}, {processor.isa}: transformers' layers; {kernels.kernel.value} attention"
    return _executor(model, pool, files, capacity, description, report)


def _pool(shape: KVShape, capacity: ExecutorCapacity, device: torch.device, report: Report) -> KVPool:
    report("allocating KV", 0.95)
    return KVPool(shape, capacity.num_blocks * capacity.block_size, capacity.num_host_slots, device)


def _executor(
    model: Model, pool: KVPool, files: ModelFiles, capacity: ExecutorCapacity, description: str, report: Report
) -> TorchExecutor:
    copy_s = pool.measure_copy_s_per_token()
    capacity = dataclasses.replace(capacity, host_copy_s_per_token=copy_s, description=description)
    _log.info("%s", description)
    report("ready", 1.0)
    return TorchExecutor(model, pool, Sampler(read_eos_ids(files)), capacity)


def _dtype(settings: TorchSettings) -> torch.dtype:
    return torch.float32 if settings.dtype is Dtype.FLOAT32 else torch.bfloat16


def _library_dtype(settings: TorchSettings, processor: Processor) -> torch.dtype:
    """The library multiplies in the dtype of its weights, so bf16 must run on instructions of its own."""
    if settings.dtype is Dtype.AUTO and settings.device == "cpu" and not processor.has_bf16_products:
        return torch.float32
    return _dtype(settings)


def _weight_bytes(config: LlamaConfig, target: Target) -> int:
    """Estimate what the weights take: dense ones, the embedding, and codes of 5 bits beside them in bf16."""
    is_float32 = target.dtype is torch.float32 or not target.processor.has_bf16_products
    dense_bytes = 4 if is_float32 and target.device.type == "cpu" else target.dtype.itemsize
    code_bytes = 0.63 if target.is_bf16_on_cpu else 0.0
    return int(config.num_parameters * (dense_bytes + code_bytes))


def _cache_folder(settings: TorchSettings) -> Path:
    return Path(settings.cache_dir) if settings.cache_dir else Path.home() / ".cache" / "bros"


def _stored_bytes(files: ModelFiles) -> int:
    """The size of the files is close to what the library's weights take, and a lower bound where they are 4-bit."""
    if files.is_gguf:
        return files.path.stat().st_size
    return sum(file.stat().st_size for file in files.path.glob("*.safetensors"))
