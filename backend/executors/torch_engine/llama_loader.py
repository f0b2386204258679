"""Loads the weights of Llama-family models for `LlamaModel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.linear import Int4Product, Linear, QuantisedProduct
from backend.executors.torch_engine.llama import LlamaLayer, LlamaWeights
from backend.executors.torch_engine.weights import Quantised, TensorSource, stack

Report = Callable[[str, float], None]


def load_weights(config: LlamaConfig, source: TensorSource, form: WeightForm, report: Report) -> LlamaWeights:
    """Read every tensor, reporting progress layer by layer."""
    reader = _Reader(source, form)
    embedding = reader.tensor("model.embed_tokens.weight")
    layers = []
    for index in range(config.num_layers):
        report("loading weights", index / config.num_layers)
        layers.append(_layer(reader, f"model.layers.{index}"))
    name = "model.embed_tokens.weight" if config.is_tied else "lm_head.weight"
    head = reader.head(name, embedding if config.is_tied else reader.tensor(name))
    return LlamaWeights(embedding, layers, reader.norm("model.norm.weight"), head)


@dataclass(frozen=True, slots=True)
class WeightForm:
    """How weights are kept; `has_quantised` keeps 4-bit and 8-bit ones (where the file has them) beside dense ones."""

    dtype: torch.dtype
    device: torch.device
    has_quantised: bool


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads tensors in the form they are kept in."""

    source: TensorSource
    form: WeightForm

    def tensor(self, name: str) -> torch.Tensor:
        return self.source.dense(name).to(self.form.device, self.form.dtype).contiguous()

    def norm(self, name: str) -> torch.Tensor:
        return self.source.dense(name).to(self.form.device, torch.float32).contiguous()

    def linear(self, *names: str) -> Linear:
        """Stack the matrices `names` into one product."""
        quantised = [part for name in names if (part := self.source.quantised(name)) is not None]
        if len(quantised) < len(names):
            return Linear(torch.cat([self.tensor(name) for name in names]))
        matrix = stack(quantised)
        weight = matrix.dense().to(self.form.device, self.form.dtype)
        return Linear(weight, _four_bit_product(matrix) if self.form.has_quantised else None)

    def head(self, name: str, weight: torch.Tensor) -> Linear:
        """Make the product that yields logits, in the 8 bits of the file for few rows."""
        matrix = self.source.eight_bit(name) if self.form.has_quantised else None
        if matrix is None:
            return Linear(weight)
        try:
            from backend.executors.torch_engine.compiled_product import eight_bit_product
        except ImportError:  # no numba; the loader warns of it
            return Linear(weight)
        return Linear(weight, eight_bit_product(*matrix))


def _four_bit_product(matrix: Quantised) -> QuantisedProduct:
    """Return our own product where it runs, torch's elsewhere."""
    try:
        from backend.executors.torch_engine.compiled_product import four_bit_product
    except ImportError:  # no numba
        return Int4Product(*matrix.packed())
    return four_bit_product(matrix) or Int4Product(*matrix.packed())


def _layer(reader: _Reader, prefix: str) -> LlamaLayer:
    attention, feed_forward = f"{prefix}.self_attn", f"{prefix}.mlp"
    return LlamaLayer(
        input_norm=reader.norm(f"{prefix}.input_layernorm.weight"),
        qkv=reader.linear(*(f"{attention}.{name}_proj.weight" for name in "qkv")),
        output=reader.linear(f"{attention}.o_proj.weight"),
        post_norm=reader.norm(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=reader.linear(f"{feed_forward}.gate_proj.weight", f"{feed_forward}.up_proj.weight"),
        down=reader.linear(f"{feed_forward}.down_proj.weight"),
    )
