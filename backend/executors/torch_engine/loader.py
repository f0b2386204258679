"""Puts a TorchExecutor together: model, KV pools, attention and sampler, as the settings say."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backend.core.errors import ConfigError
from backend.core.executor import ExecutorCapacity
from backend.executors.torch_engine.attention_choice import Place, choose_kernels, has_compiled_kernels
from backend.executors.torch_engine.executor import Model, TorchExecutor
from backend.executors.torch_engine.generation_defaults import warn_of_ignored
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.library_model import (
    LibraryModel,
    kv_shape,
    library_config_of,
    load_library_model,
    read_config,
)
from backend.executors.torch_engine.llama import LlamaModel, LlamaWeights
from backend.executors.torch_engine.llama_config import (
    config_from_gguf,
    config_from_library,
    require_readable,
    require_same_heads,
)
from backend.executors.torch_engine.llama_loader import load_weights
from backend.executors.torch_engine.memory import plan_capacity
from backend.executors.torch_engine.probe import probe_tokens
from backend.executors.torch_engine.processor import Processor, detect
from backend.executors.torch_engine.product_choice import ProductChoices
from backend.executors.torch_engine.products import Target
from backend.executors.torch_engine.reference import library_llama, plain_llama, sampled_rows
from backend.executors.torch_engine.safetensors_files import require_plain_folder
from backend.executors.torch_engine.sampler import Sampler
from backend.executors.torch_engine.served_exactly import check_library, check_own, is_long_enough
from backend.executors.torch_engine.settings import Dtype, ModelPath, TorchSettings, WeightFormat
from backend.executors.torch_engine.weight_checks import require_finite_parameters, require_shapes, unread
from backend.executors.torch_engine.weights import DirectorySource, GGUFSource, TensorSource
from backend.text.gguf_file import read_gguf
from backend.text.model_files import ModelFiles, resolve_model
from backend.text.tokenizer_files import read_eos_ids

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


@dataclass(frozen=True, slots=True)
class _Setup:
    """The settings, and the processor that runs the model."""

    settings: TorchSettings
    processor: Processor

    @property
    def device(self) -> torch.device:
        return torch.device(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.settings.dtype is Dtype.FLOAT32 else torch.bfloat16

    @property
    def library_dtype(self) -> torch.dtype:
        """The library multiplies in the dtype of its weights, so bf16 must run on instructions of its own."""
        is_emulated = self.device.type == "cpu" and not self.processor.has_bf16_products
        return torch.float32 if self.settings.dtype is Dtype.AUTO and is_emulated else self.dtype

    @property
    def target(self) -> Target:
        return Target(self.processor, self.device, self.dtype, has_compiled_kernels(), self.settings.weights)

    @property
    def cache_folder(self) -> Path:
        return Path(self.settings.cache_dir) if self.settings.cache_dir else Path.home() / ".cache" / "bros"


def load_executor(settings: TorchSettings, report: Report, processor: Processor | None = None) -> TorchExecutor:
    """See `torch_engine.load`; `processor` is this machine's where None."""
    torch.set_num_threads(settings.num_threads or len(os.sched_getaffinity(0)))
    report("reading the model's header", 0.0)
    setup = _Setup(settings, processor or detect())
    _check_weights(setup)
    found = _find(resolve_model(settings.model_path))
    if found.llama is not None and settings.layers is not ModelPath.LIBRARY:
        return _load_own(setup, found, *found.llama, report)
    if settings.layers is ModelPath.OWN:
        raise ConfigError(f"torch.layers: 'own', but model {str(found.files.path)!r} is no plain Llama; use 'auto'")
    return _load_library(setup, found, report)


def _check_weights(setup: _Setup) -> None:
    """Raise ConfigError where a format is asked for that oneDNN does not multiply here."""
    is_bf16_on_cpu = setup.settings.weights is WeightFormat.BF16 and setup.device.type == "cpu"
    if is_bf16_on_cpu and not (setup.processor.has_onednn and setup.processor.has_avx512):
        raise ConfigError(f"torch.weights: 'bf16' needs AVX-512 and oneDNN; this processor has {setup.processor.isa}")


def _find(files: ModelFiles) -> _Found:
    """Read the configuration; raises ConfigError where we cannot run the model exactly."""
    if files.is_gguf:
        gguf = read_gguf(files.path)
        if (config := config_from_gguf(gguf)) is not None:
            tensors = GGUFSource(gguf, config.num_heads, config.num_kv_heads)
            require_shapes(tensors, config)
            return _Found(files, None, (config, tensors))
        require_readable(gguf)
    library = read_config(files)
    if files.is_gguf:
        require_same_heads(gguf, library)
    else:
        require_plain_folder(files.path)
    if files.is_gguf or (config := config_from_library(library)) is None:
        return _Found(files, library, None)
    source = DirectorySource(files.path)
    if config.is_tied and source.has_own_head():
        config = dataclasses.replace(config, is_tied=False)
        library.tie_word_embeddings = False
    require_shapes(source, config)
    if left_out := unread(source.names, config):
        _log.warning("model %r: %d tensors are read by no layer: %r, ...", str(files.path), len(left_out), left_out[0])
    return _Found(files, library, (config, source))


def _load_own(setup: _Setup, found: _Found, config: LlamaConfig, source: TensorSource, report: Report) -> TorchExecutor:
    settings = setup.settings
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_size, setup.dtype)
    capacity = plan_capacity(settings, shape, _weight_bytes(config, setup.target), config.max_positions)
    choices = ProductChoices(setup.target, setup.cache_folder, settings.quantised_rows)
    weights = load_weights(config, source, setup.target, choices, report)
    pool = _pool(shape, capacity, setup.device, report)
    report("compiling kernels", 0.97)
    model = _own_model(setup, config, weights, pool, capacity)
    report("comparing with the reference", 0.98)
    _probe_own(setup, found, config, source, weights)
    return _executor(model, pool, found.files, capacity, _described(setup, choices.describe()), report)


def _own_model(
    setup: _Setup, config: LlamaConfig, weights: LlamaWeights, pool: KVPool, capacity: ExecutorCapacity
) -> LlamaModel:
    place = Place(pool, config.num_heads, capacity, setup.processor)
    kernels = choose_kernels(setup.settings.attention, place)
    ops = kernels.layer_ops(config, place, kernels.attention(place))
    return LlamaModel(weights, ops, kernels.small_steps(weights, ops))


def _probe_own(setup: _Setup, found: _Found, config: LlamaConfig, source: TensorSource, weights: LlamaWeights) -> None:
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
    shape = KVShape(len(part.layers), config.num_kv_heads, config.head_size, setup.dtype)
    make = partial(_own_model, setup, config, part)
    check_own(found.name, config.vocab_size, shape, setup.device, make, reference)


def _load_library(setup: _Setup, found: _Found, report: Report) -> TorchExecutor:
    dtype = setup.library_dtype
    config = library_config_of(found.llama[0]) if found.library is None and found.llama else found.library
    assert config is not None, "neither we nor the library read a configuration"
    shape = kv_shape(config, dtype)
    capacity = plan_capacity(setup.settings, shape, _stored_bytes(found.files), config.max_position_embeddings)
    report("loading weights", 0.1)
    library_model = load_library_model(found.files, dtype, setup.device, found.llama)
    require_finite_parameters(library_model, found.name)

    def make(pool: KVPool, capacity: ExecutorCapacity) -> LibraryModel:
        place = Place(pool, config.num_attention_heads, capacity, setup.processor)
        attention = choose_kernels(setup.settings.attention, place).attention(place)
        return LibraryModel(library_model, pool, attention)

    report("comparing with the library's own attention", 0.9)
    if is_long_enough(config.max_position_embeddings, found.name):
        check_library(found.name, library_model, config, dtype, make)
    pool = _pool(shape, capacity, setup.device, report)
    description = _described(setup, f"transformers' layers in {str(dtype).removeprefix('torch.')}")
    return _executor(make(pool, capacity), pool, found.files, capacity, description, report)


def _described(setup: _Setup, products: str) -> str:
    """Return in one line what the model runs on, and how it is multiplied."""
    return f"{setup.processor.name} ({setup.processor.isa}), {torch.get_num_threads()} threads; {products}"


def _pool(shape: KVShape, capacity: ExecutorCapacity, device: torch.device, report: Report) -> KVPool:
    report("allocating KV", 0.95)
    return KVPool(shape, capacity.num_blocks * capacity.block_size, capacity.num_host_slots, device)


def _executor(
    model: Model, pool: KVPool, files: ModelFiles, capacity: ExecutorCapacity, description: str, report: Report
) -> TorchExecutor:
    copy_s = pool.measure_copy_s_per_token()
    capacity = dataclasses.replace(
        capacity, host_copy_s_per_token=copy_s, description=description, vocab_size=model.vocab_size
    )
    _log.info("%s", description)
    warn_of_ignored(files)
    report("ready", 1.0)
    return TorchExecutor(model, pool, Sampler(read_eos_ids(files)), capacity)


def _weight_bytes(config: LlamaConfig, target: Target) -> int:
    """Estimate what the weights take: dense ones, the embedding, and codes of 5 bits beside them in bf16."""
    is_float32 = target.dtype is torch.float32 or not target.processor.has_bf16_products
    dense_bytes = 4 if is_float32 and target.device.type == "cpu" else target.dtype.itemsize
    code_bytes = 0.63 if target.is_bf16_on_cpu else 0.0
    return int(config.num_parameters * (dense_bytes + code_bytes))


def _stored_bytes(files: ModelFiles) -> int:
    """The size of the files is close to what the library's weights take, and a lower bound where they are 4-bit."""
    if files.is_gguf:
        return files.path.stat().st_size
    return sum(file.stat().st_size for file in files.path.glob("*.safetensors"))
