"""What a layer does between its matrix products: the interface, and the plain torch implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from backend.executors.torch_engine.attention import AttentionShape, SlotAttention
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.kv_pool import KVPool


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The hyperparameters of a Llama-family model.

    `rope_factors`: what the frequency of each rotary pair is divided by; empty where by nothing.
    """

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
    rope_factors: tuple[float, ...] = ()

    @property
    def num_parameters(self) -> int:
        attention = self.hidden_size * self.head_size * 2 * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        return self.num_layers * (attention + feed_forward + 2 * self.hidden_size) + embeddings + self.hidden_size

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(scale=self.head_size**-0.5)


class LayerOps(Protocol):
    """The work between matrix products, for N tokens. A method's result is valid until its next call."""

    config: LlamaConfig

    @property
    def attention(self) -> SlotAttention: ...

    def begin(self, inputs: StepInputs) -> None:
        """Prepare for a step; called once before its layers."""
        ...

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """Add `delta` to `hidden` float32 [n, E] in place; return RMSNorm(hidden) * weight in the model's dtype."""
        ...

    def rotate_and_store(self, qkv: torch.Tensor, layer_index: int) -> torch.Tensor:
        """Return rotated queries [N, H, D] from the projections [N, (H + 2G) D]; put K and V into the pool."""
        ...

    def attend(self, queries: torch.Tensor, layer_index: int) -> torch.Tensor:
        """Return [N, H D]."""
        ...

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return SiLU(gate) * up [N, F] from [N, 2F]."""
        ...


class TorchLayerOps:
    """Plain torch: runs on every device."""

    def __init__(self, config: LlamaConfig, pool: KVPool, attention: SlotAttention) -> None:
        self.config = config
        self._pool = pool
        self.attention = attention
        self._device = pool.storage.device
        self._tables = tuple(table.to(self._device) for table in rotary_tables(config))
        self._cos, self._sin = self._tables
        self._slots = torch.empty(0, dtype=torch.int64)

    def begin(self, inputs: StepInputs) -> None:
        self.attention.begin(inputs)
        positions = torch.from_numpy(inputs.positions).to(self._device)
        self._cos, self._sin = (table[positions][:, None] for table in self._tables)
        self._slots = torch.from_numpy(inputs.slots).to(self._device)

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        if delta is not None:
            hidden += delta
        normed = F.rms_norm(hidden, (hidden.shape[-1],), weight, self.config.norm_eps)
        return normed.to(self._pool.shape.dtype)

    def rotate_and_store(self, qkv: torch.Tensor, layer_index: int) -> torch.Tensor:
        config = self.config
        heads = qkv.view(len(qkv), -1, config.head_size)
        end_of_keys = config.num_heads + config.num_kv_heads
        first, second = heads[:, :end_of_keys].float().chunk(2, -1)
        turned = torch.cat([first * self._cos - second * self._sin, second * self._cos + first * self._sin], -1)
        turned = turned.to(qkv.dtype)
        self._pool.write(layer_index, turned[:, config.num_heads :], heads[:, end_of_keys:], self._slots)
        return turned[:, : config.num_heads]

    def attend(self, queries: torch.Tensor, layer_index: int) -> torch.Tensor:
        return self.attention.attend(queries, layer_index, self.config.attention_shape).reshape(len(queries), -1)

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up


def rotary_tables(config: LlamaConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, float32 [max_positions, D / 2] each."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_factors:
        frequencies = frequencies / torch.tensor(config.rope_factors)
    angles = torch.arange(config.max_positions).float()[:, None] * frequencies[None, :]
    return angles.cos(), angles.sin()
