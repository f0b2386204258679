"""The layers as one program against the same layers one kernel at a time: bit for bit, K and V included."""

from __future__ import annotations

import pytest
import torch

from backend.executors.torch_engine.compiled_ops import CompiledLayerOps
from backend.executors.torch_engine.compiled_product import four_bit_product
from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.layer_program import LayerProgram, layer_program
from backend.executors.torch_engine.linear import Linear, PlainProduct, RowRange
from backend.executors.torch_engine.llama import LlamaLayer, LlamaModel, LlamaWeights
from backend.executors.torch_engine.processor import detect
from backend.executors.torch_engine.weights import Quantised
from tests.backend.executors.torch_engine.test_compiled_ops import (
    compiled_attention,
    make_config,
    make_inputs,
    make_pool,
)

pytestmark = pytest.mark.skipif(not detect().has_avx2, reason="coded products need AVX2")
MAX_ROWS = 16


def make_linear(num_outputs: int, num_columns: int, *, is_quantised: bool) -> Linear:
    codes = torch.randint(0, 16, (num_outputs, num_columns), dtype=torch.uint8)
    scales = torch.rand((num_outputs, num_columns // 32)) * 0.02
    matrix = Quantised(codes, scales, -8 * scales)
    dense = RowRange(None, PlainProduct(matrix.dense().bfloat16()))
    if not is_quantised:
        return Linear([dense])
    return Linear([RowRange(MAX_ROWS, four_bit_product(matrix, torch.bfloat16, detect())), dense])


def make_weights(config: LlamaConfig, *, is_quantised: bool = True) -> LlamaWeights:
    torch.manual_seed(0)
    hidden, heads, inner = config.hidden_size, config.num_heads * config.head_size, config.intermediate_size
    kv = config.num_kv_heads * config.head_size
    layers = [
        LlamaLayer(
            input_norm=torch.rand(hidden),
            qkv=make_linear(heads + 2 * kv, hidden, is_quantised=is_quantised),
            output=make_linear(hidden, heads, is_quantised=is_quantised),
            post_norm=torch.rand(hidden),
            gate_up=make_linear(2 * inner, hidden, is_quantised=is_quantised),
            down=make_linear(hidden, inner, is_quantised=is_quantised),
        )
        for _ in range(config.num_layers)
    ]
    embedding = torch.randn((config.vocab_size, hidden)).bfloat16()
    return LlamaWeights(embedding, layers, torch.rand(hidden), Linear([RowRange(None, PlainProduct(embedding))]))


def make_ops(config: LlamaConfig) -> CompiledLayerOps:
    torch.manual_seed(1)
    pool = make_pool(config, torch.bfloat16)
    return CompiledLayerOps(config, pool, compiled_attention(config, pool), max_tokens=256)


def make_program(weights: LlamaWeights, ops: CompiledLayerOps) -> LayerProgram:
    program = layer_program(weights, ops)
    assert program is not None
    return program


STEPS = {
    "one decode": [[(90, 1)], [(91, 1)]],
    "first token": [[(0, 1)], [(1, 1)]],
    "more, then fewer": [[(i * 10, 1) for i in range(7)], [(5, 1), (60, 1)]],
    "short chunk": [[(40, 3), (7, 1), (0, 2)], [(43, 3)]],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=list(STEPS))
def test_a_program_equals_the_layers_run_one_by_one(steps: list[list[tuple[int, int]]]) -> None:
    config = make_config()
    weights = make_weights(config)
    ops, plain_ops = make_ops(config), make_ops(config)
    model = LlamaModel(weights, ops, make_program(weights, ops))
    plain = LlamaModel(weights, plain_ops)
    for parts in steps:
        inputs = make_inputs(parts)
        expected = plain.forward(inputs)
        assert torch.equal(model.forward(inputs), expected)
        assert torch.equal(ops.pool.storage, plain_ops.pool.storage)


@pytest.mark.parametrize(("parts", "is_taken"), [([(9, 1)], True), ([(0, 7)], True), ([(0, 8)], False)])
def test_only_small_steps_without_a_long_chunk_run_as_a_program(parts: list[tuple[int, int]], is_taken: bool) -> None:
    config = make_config()
    ops = make_ops(config)
    inputs = make_inputs(parts)
    ops.begin(inputs)
    assert make_program(make_weights(config), ops).can_run(inputs) is is_taken


def test_kernels_share_out_the_time_of_a_run() -> None:
    config = make_config()
    weights, ops = make_weights(config), make_ops(config)
    program = make_program(weights, ops)
    LlamaModel(weights, ops, program).forward(make_inputs([(90, 1)]))
    shares = program.program.shares()
    assert all(shares > 0)
    assert sum(shares) == pytest.approx(1.0)


def test_dense_weights_have_no_program() -> None:
    config = make_config()
    assert layer_program(make_weights(config, is_quantised=False), make_ops(config)) is None
