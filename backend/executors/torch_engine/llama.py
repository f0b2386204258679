"""The Llama family's layers, written for one packed row of tokens: stacked projections, no per-layer bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.layer_ops import LayerOps
from backend.executors.torch_engine.linear import Linear


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """Weights of one layer; `qkv` and `gate_up` are the library's separate projections, stacked. Norms are float32."""

    input_norm: torch.Tensor
    qkv: Linear
    output: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """All weights of a model; `embedding` [vocabulary, E]."""

    embedding: torch.Tensor
    layers: Sequence[LlamaLayer]
    final_norm: torch.Tensor
    head: Linear


class SmallStepLayers(Protocol):
    """Another way to run the layers of some steps."""

    def can_run(self, inputs: StepInputs) -> bool:
        """True for the steps it runs; asked once `LayerOps` has begun the step."""
        ...

    def run(self, inputs: StepInputs, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers on `hidden` float32 [N, E] in place; return what the last one adds [N, E]."""
        ...


class LlamaModel:
    """Runs steps through the layers; the residual stream is float32 with weights of any dtype."""

    def __init__(self, weights: LlamaWeights, ops: LayerOps, program: SmallStepLayers | None = None) -> None:
        self.weights = weights
        self.ops = ops
        self._program = program

    @property
    def vocab_size(self) -> int:
        return len(self.weights.embedding)

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Return the float32 logits [num_sampled, vocabulary] of the tokens that sample; writes K and V to the pool."""
        ops, weights = self.ops, self.weights
        device = weights.embedding.device
        ops.begin(inputs)
        hidden = F.embedding(torch.from_numpy(inputs.token_ids).to(device), weights.embedding).float()
        if self._program is not None and self._program.can_run(inputs):
            delta = self._program.run(inputs, hidden)
        else:
            delta = self._run_layers(hidden)
        if not inputs.sampled:
            return torch.empty((0, len(weights.embedding)))
        sampled = torch.from_numpy(inputs.sampled_tokens).to(device)
        return weights.head(ops.add_norm(hidden[sampled], delta[sampled], weights.final_norm)).float()

    def _run_layers(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers on `hidden` in place; return what the last one adds."""
        ops = self.ops
        delta: torch.Tensor | None = None
        for index, layer in enumerate(self.weights.layers):
            qkv = layer.qkv(ops.add_norm(hidden, delta, layer.input_norm))
            delta = layer.output(ops.attend(ops.rotate_and_store(qkv, index), index))
            gate_up = layer.gate_up(ops.add_norm(hidden, delta, layer.post_norm))
            delta = layer.down(ops.silu_multiply(gate_up))
        assert delta is not None
        return delta
