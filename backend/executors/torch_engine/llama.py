"""The Llama family's layers, written for one packed row of tokens: fused projections, no per-layer bookkeeping.

N tokens, H query heads, G key-value heads, D head size, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from backend.executors.torch_engine.attention import AttentionShape, SlotAttention
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.kv_pool import KVPool
from backend.executors.torch_engine.linear import Linear


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The hyperparameters of a Llama-family model."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    is_tied: bool

    @property
    def num_parameters(self) -> int:
        attention = self.hidden_size * self.head_size * 2 * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        return self.num_layers * (attention + feed_forward + 2 * self.hidden_size) + embeddings + self.hidden_size


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """Weights of one layer; `qkv` and `gate_up` are the library's separate projections, stacked."""

    input_norm: torch.Tensor
    qkv: Linear
    output: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class LlamaModel:
    """Runs a step through the layers. Owns no KV."""

    def __init__(
        self,
        config: LlamaConfig,
        embedding: torch.Tensor,
        layers: Sequence[LlamaLayer],
        final_norm: torch.Tensor,
        head: Linear,
    ) -> None:
        self.config = config
        self._embedding = embedding
        self._layers = layers
        self._final_norm = final_norm
        self._head = head
        self._cos, self._sin = rotary_tables(config)
        self._shape = AttentionShape(scale=config.head_size**-0.5)

    def forward(self, inputs: StepInputs, pool: KVPool, attention: SlotAttention) -> torch.Tensor:
        """Return the float32 logits [num_sampled, vocabulary] of the tokens that sample; writes K and V to the pool."""
        positions = torch.from_numpy(inputs.positions)
        slots = torch.from_numpy(inputs.slots)
        cos, sin = self._cos[positions], self._sin[positions]
        hidden = F.embedding(torch.from_numpy(inputs.token_ids), self._embedding)
        for index, layer in enumerate(self._layers):
            queries, keys, values = self._project(layer, hidden)
            rotate(queries, cos, sin)
            rotate(keys, cos, sin)
            pool.write(index, keys, values, slots)
            attended = attention.attend(queries, pool.keys[index], pool.values[index], inputs, self._shape)
            hidden = hidden + layer.output(attended.reshape(len(hidden), -1))
            gate, up = layer.gate_up(self._norm(hidden, layer.post_norm)).chunk(2, -1)
            hidden = hidden + layer.down(F.silu(gate) * up)
        last = hidden[torch.from_numpy(inputs.sampled_tokens)]
        return self._head(self._norm(last, self._final_norm)).float()

    def _project(self, layer: LlamaLayer, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.config
        qkv = layer.qkv(self._norm(hidden, layer.input_norm))
        heads = qkv.view(len(hidden), config.num_heads + 2 * config.num_kv_heads, config.head_size)
        end_of_keys = config.num_heads + config.num_kv_heads
        queries, keys = heads[:, : config.num_heads], heads[:, config.num_heads : end_of_keys]
        return queries.contiguous(), keys.contiguous(), heads[:, end_of_keys:]

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.config.norm_eps)


def rotary_tables(config: LlamaConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, float32 [max_positions, D / 2] each."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    angles = torch.arange(config.max_positions).float()[:, None] * (1.0 / config.rope_theta**exponents)[None, :]
    return angles.cos(), angles.sin()


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Apply rotary embeddings to [N, heads, D] in place; halves are paired, as the Hugging Face layout has it."""
    first, second = heads.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    heads.copy_(torch.cat([first * cos - second * sin, second * cos + first * sin], -1))
