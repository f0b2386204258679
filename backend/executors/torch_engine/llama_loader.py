"""Recognises Llama-family models and loads them into `LlamaModel`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.linear import Linear
from backend.executors.torch_engine.llama import LlamaLayer, LlamaWeights
from backend.executors.torch_engine.product_choice import ProductChoices
from backend.executors.torch_engine.products import Matrix, Target
from backend.executors.torch_engine.weights import TensorSource, stack
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


def load_weights(
    config: LlamaConfig, source: TensorSource, target: Target, choices: ProductChoices, report: Report
) -> LlamaWeights:
    """Read every tensor, reporting progress layer by layer."""
    reader = _Reader(source, target, choices, config.num_layers)
    name = "model.embed_tokens.weight"
    embedding = source.dense(name).to(target.device, target.dtype).contiguous()
    layers = []
    for index in range(config.num_layers):
        report("loading weights", index / config.num_layers)
        layers.append(_layer(reader, f"model.layers.{index}"))
    head = reader.head(name if config.is_tied else "lm_head.weight", (config.vocab_size, config.hidden_size))
    return LlamaWeights(embedding, layers, reader.norm("model.norm.weight"), head)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads tensors and makes their products."""

    source: TensorSource
    target: Target
    choices: ProductChoices
    num_layers: int

    def norm(self, name: str) -> torch.Tensor:
        return self.source.dense(name).to(self.target.device, torch.float32).contiguous()

    def linear(self, kind: str, *names: str) -> Linear:
        """Stack the matrices `names` into one product."""
        codes = stack([self.source.codes(name) for name in names])

        def dense() -> torch.Tensor:
            return codes.dense() if codes else torch.cat([self.source.dense(name) for name in names])

        shape = tuple(codes.codes.shape) if codes else tuple(dense().shape)
        return self.choices.linear(Matrix(kind, (shape[0], shape[1]), dense, codes), self.num_layers)

    def head(self, name: str, shape: tuple[int, int]) -> Linear:
        """Make the product that yields logits."""
        codes = self.source.codes(name)
        return self.choices.linear(Matrix("head", shape, lambda: self.source.dense(name), codes, is_head=True))


def _layer(reader: _Reader, prefix: str) -> LlamaLayer:
    attention, feed_forward = f"{prefix}.self_attn", f"{prefix}.mlp"
    return LlamaLayer(
        input_norm=reader.norm(f"{prefix}.input_layernorm.weight"),
        qkv=reader.linear("qkv", *(f"{attention}.{name}_proj.weight" for name in "qkv")),
        output=reader.linear("output", f"{attention}.o_proj.weight"),
        post_norm=reader.norm(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=reader.linear("gate_up", f"{feed_forward}.gate_proj.weight", f"{feed_forward}.up_proj.weight"),
        down=reader.linear("down", f"{feed_forward}.down_proj.weight"),
    )
