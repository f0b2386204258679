"""The plain torch path keeps every tensor on the model's device: run on the device that holds shapes and no values."""

from __future__ import annotations

import pytest
import torch

from backend.executors.torch_engine.attention import TorchAttention
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import TorchLayerOps
from backend.executors.torch_engine.linear import Linear, PlainProduct, RowRange
from backend.executors.torch_engine.llama import LlamaLayer, LlamaModel, LlamaWeights
from tests.backend.torch_engine.test_compiled_ops import make_config, make_inputs

META = torch.device("meta")


def make_meta_model(dtype: torch.dtype) -> LlamaModel:
    config = make_config()
    hidden, heads = config.hidden_size, config.num_heads * config.head_size
    kv = config.num_kv_heads * config.head_size

    def linear(num_rows: int, num_columns: int) -> Linear:
        weight = torch.empty((num_rows, num_columns), dtype=dtype, device=META)
        return Linear([RowRange(None, PlainProduct(weight))])

    norm = torch.empty(hidden, device=META)
    layer = LlamaLayer(
        norm,
        linear(heads + 2 * kv, hidden),
        linear(hidden, heads),
        norm,
        linear(2 * config.intermediate_size, hidden),
        linear(hidden, config.intermediate_size),
    )
    embedding = torch.empty((config.vocab_size, hidden), dtype=dtype, device=META)
    weights = LlamaWeights(embedding, [layer] * config.num_layers, norm, linear(config.vocab_size, hidden))
    pool = KVPool(KVShape(config.num_layers, config.num_kv_heads, config.head_size, dtype), 1024, 0, META)
    return LlamaModel(weights, TorchLayerOps(config, pool, TorchAttention(pool)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_float32_and_stay_on_the_device(dtype: torch.dtype) -> None:
    logits = make_meta_model(dtype).forward(make_inputs([(100, 1), (0, 50), (7, 3)]))
    assert (logits.shape, logits.dtype, logits.device) == ((3, 64), torch.float32, META)
