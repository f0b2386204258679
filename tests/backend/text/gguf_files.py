"""Writes small GGUF files: a library's Llama as llama.cpp's converter stores it, or a vocabulary alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    path: Path,
    fields: Mapping[str, object],
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    architecture: str = "llama",
) -> Path:
    """Write a file with float32 tensors; one of bytes is already in blocks of Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in fields.items():
        adders.get(type(value), writer.add_array)(key, value)
    for name, tensor in (tensors or {}).items():
        if tensor.dtype == np.uint8:
            writer.add_tensor(name, tensor, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_fields(config: Any) -> dict[str, object]:
    """Return the fields that a converter writes for the library's configuration of a Llama."""
    return {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.eos_token_id": 2,
    }


def llama_tensors(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of the library's Llama under GGUF's names, the rows of q and k interleaved."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, parameter in model.named_parameters():
        stem, _, kind = name.rpartition(".")
        values = parameter.detach().numpy()
        if (num_heads := heads.get(stem.rpartition(".")[2])) is not None:
            values = values.reshape(num_heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if stem.startswith("model.layers."):
            _, _, index, part = stem.split(".", 3)
            tensors[f"blk.{index}.{_LAYER_NAMES[part]}.{kind}"] = values
        else:
            tensors[f"{_NAMES[stem]}.{kind}"] = values
    return tensors
