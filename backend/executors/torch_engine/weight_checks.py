"""Refuses weights that our own layers would take for others: wrong shapes, and values that are no numbers.

The compiled kernels trust both. They read by the sizes of the configuration, and LLVM may assume that all is finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.weights import EightBit, Quantised, Stored, TensorSource


def llama_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that our own layers read, by its Hugging Face name."""
    hidden, vocabulary = config.hidden_size, (config.vocab_size, config.hidden_size)
    layer = _layer_shapes(config)
    shapes = {f"model.layers.{i}.{part}.weight": layer[part] for i in range(config.num_layers) for part in layer}
    head = {} if config.is_tied else {"lm_head.weight": vocabulary}
    return {"model.embed_tokens.weight": vocabulary, **shapes, "model.norm.weight": (hidden,), **head}


def _layer_shapes(config: LlamaConfig) -> Mapping[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    return {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def require_shapes(source: TensorSource, config: LlamaConfig) -> None:
    """Raise ConfigError where a tensor is absent or has another shape than the configuration says; reads headers."""
    if config.num_kv_heads < 1 or config.num_heads % config.num_kv_heads:
        where = source.stored("model.embed_tokens.weight").where
        heads = f"{config.num_heads} attention heads are no multiple of {config.num_kv_heads} key-value heads"
        raise ConfigError(f"model {where!r}: {heads}")
    for name, expected in llama_shapes(config).items():
        stored = source.stored(name)
        if stored.shape != expected:
            raise ConfigError(f"{stored} has the shape {list(stored.shape)}, its configuration says {list(expected)}")


def require_finite(tensor: torch.Tensor, stored: Stored | str) -> torch.Tensor:
    """Return `tensor`; raise ConfigError where it holds NaN or infinity.

    One pass: `aminmax` propagates NaN. `isfinite` makes a mask first.
    """
    if tensor.numel() and not all(extreme.isfinite() for extreme in torch.aminmax(tensor)):
        raise ConfigError(f"{stored} holds NaN or infinity")
    return tensor


def require_finite_codes(codes: Quantised | EightBit | None, stored: Stored) -> None:
    """Look at what may be no number in a matrix of codes."""
    if codes is not None:
        require_finite(codes.scales, stored)
    if isinstance(codes, Quantised):
        require_finite(codes.minima, stored)


def require_finite_parameters(model: torch.nn.Module, name: str) -> None:
    """Raise ConfigError where a tensor of a model that the library has loaded holds NaN or infinity."""
    for tensor_name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            require_finite(tensor, f"{name}: tensor {tensor_name!r}")


def unread(names: Iterable[str], config: LlamaConfig) -> list[str]:
    """Return which of `names` no layer reads, in order; a tied head and old tables of rotary angles do not count."""
    known = llama_shapes(config).keys() | {"lm_head.weight"}
    return sorted(name for name in names if name not in known and not name.endswith(".rotary_emb.inv_freq"))
