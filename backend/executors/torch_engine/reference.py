"""Forward passes that share no code with ours, for the probe: the library's own, and a Llama in plain torch.

The plain one is for GGUF files: to import the library costs more than to load the default model. Both compute a
Llama's first layers only, because the others differ in their weights alone. Both compute some rows of its vocabulary
only, because all rows would take most of the memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.weights import TensorSource

_EXACT = "eager"  # the library's plainest attention: windows, caps and masks as the model's authors wrote them
_OF_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_SAMPLED_TOKENS = 512  # of the vocabulary, beside those of the probe


@dataclass(frozen=True, slots=True)
class Reference:
    """`logits`: token ids int64 [n], all among `rows`, to float32 [n, rows]; `rows` None: the whole vocabulary."""

    logits: Callable[[torch.Tensor], torch.Tensor]
    rows: torch.Tensor | None


def sampled_rows(vocab_size: int, used: torch.Tensor) -> torch.Tensor:
    """Return `used` and tokens spread over the vocabulary, in order."""
    spread = torch.linspace(0, vocab_size - 1, min(_SAMPLED_TOKENS, vocab_size)).long()
    rows: torch.Tensor = torch.unique(torch.cat([used, spread]))
    return rows


# --- The library ------------------------------------------------------------------------------------------------


def library_llama(library_config: Any, source: TensorSource, num_layers: int, rows: torch.Tensor) -> Reference:
    """Make the library's own float32 Llama of the first layers, with the tokens `rows` only."""
    model = _truncated(library_config, len(rows), num_layers)
    for name, parameter in model.named_parameters():
        tensor = source.dense(name)
        parameter.data.copy_(tensor[rows] if name in _OF_VOCABULARY else tensor)
    return Reference(lambda token_ids: library_logits(model, torch.searchsorted(rows, token_ids)), rows)


def _truncated(library_config: Any, vocab_size: int, num_layers: int) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(library_config)
    config.vocab_size, config.num_hidden_layers, config.pad_token_id = vocab_size, num_layers, None
    make: Any = AutoModelForCausalLM.from_config
    with no_init_weights():
        model = make(config, dtype=torch.float32, attn_implementation=_EXACT).eval()
    model.tie_weights()
    return model


@torch.inference_mode()
def library_logits(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits [n, vocabulary] of one sequence, by whatever attention `model` has."""
    device = model.device
    positions = torch.arange(len(token_ids), device=device)[None]
    output = model(input_ids=token_ids[None].to(device), position_ids=positions, use_cache=False)
    logits: torch.Tensor = output.logits[0].float().cpu()
    return logits


@contextmanager
def library_attention(model: Any, ours: str) -> Iterator[None]:
    """Let a model attend by the library's own code."""
    model.set_attn_implementation(_EXACT)
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


@contextmanager
def narrow_windows(model: Any, longest: int) -> Iterator[None]:
    """Let the library's masks show `longest` tokens at most where they have a window; they read it at each call."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    windows = [(config, getattr(config, "sliding_window", None)) for config in configs.values()]
    wide = [(config, window) for config, window in windows if isinstance(window, int) and window > longest]
    for config, _ in wide:
        config.sliding_window = longest
    try:
        yield
    finally:
        for config, window in wide:
            config.sliding_window = window


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Widen a model's weights and buffers; that and the way back are exact."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    dtypes = [tensor.dtype for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


# --- Plain torch ------------------------------------------------------------------------------------------------


def plain_llama(config: LlamaConfig, source: TensorSource, num_layers: int, rows: torch.Tensor) -> Reference:
    """Return a float32 Llama of the first layers, with the tokens `rows` only."""
    head_name = "model.embed_tokens.weight" if config.is_tied else "lm_head.weight"
    embedding = source.dense("model.embed_tokens.weight")[rows].float()
    head = embedding if config.is_tied else source.dense(head_name)[rows].float()
    parts = [*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down"))]
    layers = [
        {part: source.dense(f"model.layers.{index}.{part}.weight").float() for part in [*parts, *_NORMS]}
        for index in range(num_layers)
    ]
    norm = source.dense("model.norm.weight").float()

    def logits(token_ids: torch.Tensor) -> torch.Tensor:
        hidden = embedding[torch.searchsorted(rows, token_ids)]
        for layer in layers:
            hidden = hidden + _attention(config, layer, _normed(config, hidden, layer[_NORMS[0]]))
            x = _normed(config, hidden, layer[_NORMS[1]])
            gate, up = x @ layer["mlp.gate_proj"].T, x @ layer["mlp.up_proj"].T
            hidden = hidden + (gate * gate.sigmoid() * up) @ layer["mlp.down_proj"].T
        return _normed(config, hidden, norm) @ head.T

    return Reference(logits, rows)


_NORMS = ("input_layernorm", "post_attention_layernorm")


def _normed(config: LlamaConfig, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight


def _attention(config: LlamaConfig, layer: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Heads [H, n, D] over all earlier tokens; each key-value head serves neighbouring query heads."""
    q, k, v = (
        (x @ layer[f"self_attn.{part}_proj"].T).view(len(x), -1, config.head_size).transpose(0, 1) for part in "qkv"
    )
    q, k = _turned(config, q), _turned(config, k)
    k, v = (each.repeat_interleave(config.num_heads // config.num_kv_heads, 0) for each in (k, v))
    scores = q @ k.transpose(1, 2) / config.head_size**0.5
    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    out = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
    mixed: torch.Tensor = out.transpose(0, 1).reshape(len(x), -1) @ layer["self_attn.o_proj"].T
    return mixed


def _turned(config: LlamaConfig, heads: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + D / 2), read as a complex number, by its angle at the token's position."""
    half = config.head_size // 2
    factors = torch.tensor(config.rope_factors or [1.0] * half)
    angles = torch.arange(heads.shape[1])[:, None] / (config.rope_theta ** (torch.arange(half) / half) * factors)
    turned = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)
