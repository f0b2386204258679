"""Recognises Llama-family models and loads them into `LlamaModel`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from backend.executors.torch_engine.linear import Linear
from backend.executors.torch_engine.llama import LlamaConfig, LlamaLayer, LlamaModel
from backend.executors.torch_engine.weights import DirectorySource, GGUFSource, Quantised, TensorSource, stack
from backend.gguf_file import GGUFFile

Report = Callable[[str, float], None]

_ARCHITECTURES = frozenset({"LlamaForCausalLM", "MistralForCausalLM"})


def config_from_gguf(gguf: GGUFFile) -> LlamaConfig | None:
    """Return the hyperparameters of a GGUF file; None where it is no plain Llama."""
    if gguf.architecture != "llama" or "rope_freqs.weight" in gguf.tensors or "llama.expert_count" in gguf.fields:
        return None
    num_heads = int(gguf.number("llama.attention.head_count"))
    hidden_size = int(gguf.number("llama.embedding_length"))
    return LlamaConfig(
        num_layers=int(gguf.number("llama.block_count")),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=int(gguf.number("llama.attention.head_count_kv", num_heads)),
        head_size=int(gguf.number("llama.attention.key_length", hidden_size // num_heads)),
        intermediate_size=int(gguf.number("llama.feed_forward_length")),
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        norm_eps=gguf.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=gguf.number("llama.rope.freq_base", 10000.0),
        max_positions=int(gguf.number("llama.context_length")),
        is_tied="output.weight" not in gguf.tensors,
    )


def config_from_directory(directory: Path) -> LlamaConfig | None:
    """Return the hyperparameters in `config.json`; None where it is no plain Llama."""
    config = json.loads((directory / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    is_plain = (
        config["architectures"][0] in _ARCHITECTURES
        and rope.get("rope_type", "default") == "default"
        and config.get("hidden_act", "silu") == "silu"
        and not any(config.get(name) for name in ("sliding_window", "attention_bias", "mlp_bias"))
        and config.get("quantization_config") is None
    )
    if not is_plain:
        return None
    num_heads = config["num_attention_heads"]
    return LlamaConfig(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_size=config.get("head_dim") or config["hidden_size"] // num_heads,
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        max_positions=config["max_position_embeddings"],
        is_tied=config.get("tie_word_embeddings", False),
    )


def gguf_source(gguf: GGUFFile, config: LlamaConfig) -> TensorSource:
    return GGUFSource(gguf, config.num_heads, config.num_kv_heads)


def directory_source(directory: Path) -> TensorSource:
    return DirectorySource(directory)


class LlamaLoader:
    """Builds a LlamaModel; `wants_int4` keeps 4-bit weights beside the dense ones, for steps of few tokens."""

    def __init__(self, config: LlamaConfig, source: TensorSource, dtype: torch.dtype, wants_int4: bool) -> None:
        self._config = config
        self._source = source
        self._dtype = dtype
        self._wants_int4 = wants_int4

    def load(self, report: Report) -> LlamaModel:
        """Read every tensor, reporting progress layer by layer."""
        config = self._config
        embedding = self._dense("model.embed_tokens.weight")
        layers = []
        for index in range(config.num_layers):
            report("loading layers", index / config.num_layers)
            layers.append(self._layer(f"model.layers.{index}"))
        head = embedding if config.is_tied else self._dense("lm_head.weight")
        return LlamaModel(config, embedding, layers, self._dense("model.norm.weight"), Linear(head))

    def _layer(self, prefix: str) -> LlamaLayer:
        attention, feed_forward = f"{prefix}.self_attn", f"{prefix}.mlp"
        return LlamaLayer(
            input_norm=self._dense(f"{prefix}.input_layernorm.weight"),
            qkv=self._linear([f"{attention}.{name}_proj.weight" for name in "qkv"]),
            output=self._linear([f"{attention}.o_proj.weight"]),
            post_norm=self._dense(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=self._linear([f"{feed_forward}.gate_proj.weight", f"{feed_forward}.up_proj.weight"]),
            down=self._linear([f"{feed_forward}.down_proj.weight"]),
        )

    def _dense(self, name: str) -> torch.Tensor:
        return self._source.dense(name).to(self._dtype).contiguous()

    def _linear(self, names: list[str]) -> Linear:
        """Stack the matrices `names` into one product."""
        parts = [self._source.quantised(name) for name in names]
        quantised = [part for part in parts if isinstance(part, Quantised)]
        if len(quantised) < len(names):
            return Linear(torch.cat([self._dense(name) for name in names]))
        matrix = stack(quantised)
        dense = matrix.dense().to(self._dtype)
        return Linear(dense, *matrix.packed()) if self._wants_int4 else Linear(dense)
