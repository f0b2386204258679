"""Writes a Llama from a GGUF file as a Hugging Face directory in float32, for engines that load nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from backend.core.errors import ConfigError
from backend.core.ownership import make_own_folder
from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.llama_config import config_from_gguf
from backend.executors.torch_engine.weight_checks import llama_shapes, require_finite, require_shapes
from backend.executors.torch_engine.weights import GGUFSource
from backend.text.gguf_file import read_gguf
from backend.text.model_files import ModelFiles
from backend.text.tokenizer_files import read_eos_ids


def export_llama(files: ModelFiles, directory: Path) -> None:
    """Write the model to `directory`, whose `config.json` comes last. Raises ConfigError for no plain Llama."""
    from safetensors.torch import save_file

    gguf = read_gguf(files.path)
    config = config_from_gguf(gguf)
    if config is None or len(set(config.rope_factors)) > 1:
        raise ConfigError(f"model {str(files.path)!r} is no plain Llama: give a Hugging Face directory")
    source = GGUFSource(gguf, config.num_heads, config.num_kv_heads)
    require_shapes(source, config)
    tensors = {
        name: require_finite(source.dense(name), source.stored(name)).float().contiguous()
        for name in llama_shapes(config)
    }
    make_own_folder(directory)
    _write(directory / "model.safetensors", lambda path: save_file(tensors, path, {"format": "pt"}))
    words = json.dumps(_library_config(config, sorted(read_eos_ids(files))), indent=2)
    _write(directory / "config.json", lambda path: path.write_text(words))


def _library_config(config: LlamaConfig, eos_token_ids: list[int]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": _rope(config),
        "tie_word_embeddings": config.is_tied,
        "eos_token_id": eos_token_ids,
        "torch_dtype": str(torch.float32).removeprefix("torch."),
    }


def _rope(config: LlamaConfig) -> dict[str, object]:
    """One factor for all rotary pairs is the library's linear scaling."""
    if not config.rope_factors:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {"rope_type": "linear", "rope_theta": config.rope_theta, "factor": config.rope_factors[0]}


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name first, so that it is there whole or not at all."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    write(part)
    part.replace(path)
