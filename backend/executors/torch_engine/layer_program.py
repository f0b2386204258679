"""All layers of a step of few tokens as one program of compiled kernels: what `LlamaModel` does layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from backend.executors.torch_engine import kernels
from backend.executors.torch_engine.compiled_ops import CompiledLayerOps, balanced_bounds
from backend.executors.torch_engine.compiled_product import CompiledProduct
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.llama import LlamaWeights
from backend.executors.torch_engine.program import Program

# The kernels of a layer, in order.
_INPUT_NORM, _QKV, _ROTATE, _ATTEND, _OUTPUT, _POST_NORM, _GATE_UP, _SILU, _DOWN = range(9)
_ELEMENT_WISE = [_INPUT_NORM, _ROTATE, _POST_NORM, _SILU]
_NORMS = [_INPUT_NORM, _POST_NORM]
_PRODUCTS = [_QKV, _OUTPUT, _GATE_UP, _DOWN]
_ROTATE_STEP_FIELDS = [kernels.POSITIONS, kernels.SLOTS]
_ATTEND_STEP_FIELDS = [
    kernels.BOUNDS,
    kernels.TOKENS,
    kernels.HEADS_PER_ITEM,
    kernels.SLOT_TABLE,
    kernels.SLOT_TABLE_WIDTH,
    kernels.ROWS,
    kernels.POSITIONS,
]


class LayerProgram:
    """The layers of `weights` over the buffers of `ops`; `products`: those of each layer, in the layer's order.

    `max_tokens`: a step of more tokens has other products.
    """

    def __init__(
        self,
        weights: LlamaWeights,
        products: Sequence[Sequence[CompiledProduct]],
        ops: CompiledLayerOps,
        max_tokens: int,
    ) -> None:
        self._ops, self._weights = ops, weights  # the program's fields point into both
        self._max_tokens = max_tokens
        self._bounds = [balanced_bounds(np.ones(n), ops.num_threads) for n in range(self._max_tokens + 1)]
        self._deltas, self._qkv, self._gate_up = (
            torch.empty((self._max_tokens, product.num_outputs), dtype=torch.bfloat16)
            for product in (products[0][3], products[0][0], products[0][2])
        )
        norm, rotate, silu = (block.kernel for block in (ops.norm_block, ops.rotate_block, ops.silu_block))
        product = products[0][0].block.kernel
        attend = ops.attention.block.kernel
        layer_kernels = [norm, product, rotate, attend, product, norm, product, silu, product]
        self.program = Program(layer_kernels, len(products), ops.num_threads)
        self._set_constants(weights, products)

    def can_run(self, inputs: StepInputs) -> bool:
        """True for a step of few tokens without a long chunk, once `ops` has begun it."""
        return inputs.num_tokens <= self._max_tokens and not self._ops.attention.has_long

    def run(self, inputs: StepInputs, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers on `hidden` float32 [N, E], in place; return what the last one adds, valid until next time."""
        fields = self.program.fields
        fields[:, _ELEMENT_WISE, kernels.BOUNDS] = self._bounds[inputs.num_tokens].ctypes.data
        fields[:, _NORMS, kernels.HIDDEN] = hidden.data_ptr()
        fields[:, _PRODUCTS, kernels.NUM_ROWS] = inputs.num_tokens
        fields[:, _ROTATE, _ROTATE_STEP_FIELDS] = self._ops.rotate_block.fields[_ROTATE_STEP_FIELDS]
        fields[:, _ATTEND, _ATTEND_STEP_FIELDS] = self._ops.attention.block.fields[_ATTEND_STEP_FIELDS]
        self.program.run()
        return self._deltas[: inputs.num_tokens]

    def _set_constants(self, weights: LlamaWeights, products: Sequence[Sequence[CompiledProduct]]) -> None:
        """Fill in what no step changes: the buffers from kernel to kernel, and each layer's weights and pool."""
        ops, fields = self._ops, self.program.fields
        templates = {
            _INPUT_NORM: (ops.norm_block, self._deltas),
            _ROTATE: (ops.rotate_block, self._qkv),
            _POST_NORM: (ops.norm_block, self._deltas),
            _SILU: (ops.silu_block, self._gate_up),
        }
        for stage, (block, source) in templates.items():
            fields[:, stage] = block.fields
            fields[:, stage, kernels.X] = source.data_ptr()
        fields[0, _INPUT_NORM, kernels.X] = 0
        for index, (layer, layer_products) in enumerate(zip(weights.layers, products, strict=True)):
            fields[index, _INPUT_NORM, kernels.WEIGHT] = layer.input_norm.data_ptr()
            fields[index, _POST_NORM, kernels.WEIGHT] = layer.post_norm.data_ptr()
            for stage, product in zip(_PRODUCTS, layer_products, strict=True):
                fields[index, stage] = product.block.fields
            ops.attention.set_layer(index, ops.config.attention_shape)
            fields[index, _ATTEND] = ops.attention.block.fields
            fields[index, _ROTATE, kernels.POOL] = ops.attention.block.fields[kernels.POOL]
        outputs = fields[0, :, kernels.OUT]
        wires = {
            _QKV: (outputs[_INPUT_NORM], self._qkv),
            _OUTPUT: (outputs[_ATTEND], self._deltas),
            _GATE_UP: (outputs[_POST_NORM], self._gate_up),
            _DOWN: (outputs[_SILU], self._deltas),
        }
        for stage, (source_address, target) in wires.items():
            fields[:, stage, kernels.X] = source_address
            fields[:, stage, kernels.OUT] = target.data_ptr()
        fields[:, _ATTEND, kernels.X] = outputs[_ROTATE]


def layer_program(weights: LlamaWeights, ops: CompiledLayerOps) -> LayerProgram | None:
    """Return the program; None where some product of few rows does not run by our own kernel."""
    first_ranges = [
        [linear.ranges[0] for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        for layer in weights.layers
    ]
    products = [[each.product for each in layer] for layer in first_ranges]
    own = [[product for product in layer if isinstance(product, CompiledProduct)] for layer in products]
    if own != products:
        return None
    return LayerProgram(weights, own, ops, min(each.max_rows or 0 for layer in first_ranges for each in layer))
