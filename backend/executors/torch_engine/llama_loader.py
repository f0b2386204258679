"""Loads the weights of Llama-family models for `LlamaModel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.linear import Linear
from backend.executors.torch_engine.llama import LlamaLayer, LlamaWeights
from backend.executors.torch_engine.product_choice import ProductChoices
from backend.executors.torch_engine.products import Matrix, Target
from backend.executors.torch_engine.weight_checks import require_finite, require_finite_codes
from backend.executors.torch_engine.weights import EightBit, Quantised, TensorSource, stack

Report = Callable[[str, float], None]


def load_weights(
    config: LlamaConfig, source: TensorSource, target: Target, choices: ProductChoices, report: Report
) -> LlamaWeights:
    """Read every tensor, reporting progress layer by layer."""
    reader = _Reader(source, target, choices, config.num_layers)
    name = "model.embed_tokens.weight"
    embedding = reader.dense(name).to(target.device, target.dtype).contiguous()
    layers = []
    for index in range(config.num_layers):
        report("loading weights", index / config.num_layers)
        layers.append(_layer(reader, f"model.layers.{index}"))
    head = reader.head(name if config.is_tied else "lm_head.weight", (config.vocab_size, config.hidden_size))
    return LlamaWeights(embedding, layers, reader.norm("model.norm.weight"), head)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads tensors, looks at each one once, and makes their products; their shapes are already checked."""

    source: TensorSource
    target: Target
    choices: ProductChoices
    num_layers: int
    finite: set[str] = field(default_factory=set)

    def dense(self, name: str) -> torch.Tensor:
        tensor = self.source.dense(name)
        if name not in self.finite:
            require_finite(tensor, self.source.stored(name))
            self.finite.add(name)
        return tensor

    def codes(self, name: str) -> Quantised | EightBit | None:
        codes = self.source.codes(name)
        require_finite_codes(codes, self.source.stored(name))
        return codes

    def norm(self, name: str) -> torch.Tensor:
        return self.dense(name).to(self.target.device, torch.float32).contiguous()

    def linear(self, kind: str, *names: str) -> Linear:
        """Stack the matrices `names` into one product."""
        codes = stack([self.codes(name) for name in names])

        def dense() -> torch.Tensor:
            return codes.dense() if codes else torch.cat([self.dense(name) for name in names])

        shapes = [self.source.stored(name).shape for name in names]
        shape = (sum(rows for rows, _ in shapes), shapes[0][1])
        return self.choices.linear(Matrix(kind, shape, dense, codes), self.num_layers)

    def head(self, name: str, shape: tuple[int, int]) -> Linear:
        """Make the product that yields logits."""
        return self.choices.linear(Matrix("head", shape, lambda: self.dense(name), self.codes(name), is_head=True))


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
