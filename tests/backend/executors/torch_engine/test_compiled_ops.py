"""The compiled kernels against plain torch on random steps; in float32 a token's result is the same bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from backend.core.plan import StepBatch
from backend.executors.torch_engine.attention import AttentionShape, SlotAttention, TorchAttention
from backend.executors.torch_engine.compiled_ops import (
    CompiledAttention,
    CompiledLayerOps,
    TiledAttention,
    balanced_bounds,
)
from backend.executors.torch_engine.inputs import StepInputs, pack
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import LlamaConfig, TorchLayerOps
from backend.executors.torch_engine.processor import detect
from tests.backend.executors.torch_engine.schedules import make_request

NUM_SLOTS, MAX_LEN = 1024, 128
DTYPES = [torch.float32, torch.bfloat16]
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
# An element-wise operation of torch's rounds its result and up to two steps on the way, ours the result only.
ELEMENT_WISE_ROUNDINGS = 4
# A result of attention is a sum of weighted values. It is rounded. Where values are bf16, the weights and their divisor
# may be rounded, too. Sums are float32 throughout: each of their terms is rounded once, in scores and in results.
RESULT_ROUNDINGS = 3


def make_config(num_heads: int = 6, num_kv_heads: int = 2, head_size: int = 32) -> LlamaConfig:
    return LlamaConfig(
        num_layers=2,
        hidden_size=64,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        intermediate_size=96,
        vocab_size=64,
        norm_eps=1e-5,
        rope_theta=1e4,
        max_positions=MAX_LEN,
        is_tied=True,
    )


def make_pool(config: LlamaConfig, dtype: torch.dtype) -> KVPool:
    shape = KVShape(config.num_layers, config.num_kv_heads, config.head_size, dtype)
    pool = KVPool(shape, NUM_SLOTS, 8, torch.device("cpu"))
    pool.storage.copy_(torch.randn(pool.storage.shape))
    return pool


def in_float32(pool: KVPool, *, is_magnitude: bool = False) -> KVPool:
    """Copy a pool without loss: the reference should not round where torch's bf16 would. `is_magnitude`: |values|."""
    shape = dataclasses.replace(pool.shape, dtype=torch.float32)
    copy = KVPool(shape, NUM_SLOTS, 8, torch.device("cpu"))
    copy.storage.copy_(pool.storage)
    if is_magnitude:
        copy.storage[:, :, 1].abs_()
    return copy


def make_inputs(parts: list[tuple[int, int]], max_len: int = MAX_LEN) -> StepInputs:
    """A step of sequences, each (computed, new) tokens, over scattered slots."""
    slots = np.random.default_rng(0).permutation(NUM_SLOTS).reshape(-1, max_len).astype(np.int32)
    requests = []
    for row, (start, num_new) in enumerate(parts):
        request = make_request(f"r{row}", [1] * (start + num_new))
        request.row, request.num_computed = row, start
        requests.append(request)
    return pack(StepBatch(requests, [num_new for _, num_new in parts], slots))


def compiled_attention(config: LlamaConfig, pool: KVPool) -> CompiledAttention:
    return CompiledAttention(pool, config.num_heads, max_tokens=256, max_seq_len=MAX_LEN, processor=detect())


STEPS = {
    "one decode": [(90, 1)],
    "first token": [(0, 1)],
    "many decodes": [(i * 15, 1) for i in range(8)],
    "long chunk": [(40, 60)],
    "mixed": [(100, 1), (0, 50), (7, 3), (64, 1)],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("heads", "shape"),
    [
        ((6, 2, 32), AttentionShape(0.2)),
        ((4, 4, 16), AttentionShape(0.2, window=20)),
        ((8, 1, 64), AttentionShape(0.2, softcap=5.0)),
        ((4, 2, 20), AttentionShape(0.2)),
        ((4, 2, 120), AttentionShape(0.2, window=20)),
    ],
)
def test_compiled_attention_equals_torchs(
    step: str, heads: tuple[int, int, int], shape: AttentionShape, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    config = make_config(*heads)
    pool, inputs = make_pool(config, dtype), make_inputs(STEPS[step])
    queries = torch.randn((inputs.num_tokens, config.num_heads, config.head_size)).to(dtype)
    for attention in (compiled_attention(config, pool), TorchAttention(pool, torch.float32)):
        attention.begin(inputs)
        assert_is_rounding(attention.attend(queries, 1, shape).float(), pool, inputs, queries, shape)


def assert_is_rounding(
    mine: torch.Tensor, pool: KVPool, inputs: StepInputs, queries: torch.Tensor, shape: AttentionShape
) -> None:
    """Compare with torch in float32, within what rounding explains: in shares of the sum of weighted |values|."""
    reference, magnitude = (
        attend_all(TorchAttention(each), inputs, queries.float(), shape)
        for each in (in_float32(pool), in_float32(pool, is_magnitude=True))
    )
    num_terms = pool.shape.head_size + int(inputs.positions.max()) + 1
    bound = RESULT_ROUNDINGS * UNIT_ROUNDOFF[pool.shape.dtype] + 4 * num_terms * UNIT_ROUNDOFF[torch.float32]
    worst = float(((mine - reference).abs() / magnitude).max())
    assert worst <= bound, f"an element errs by {worst / bound:.2f} of what rounding explains"


def attend_all(
    attention: SlotAttention, inputs: StepInputs, queries: torch.Tensor, shape: AttentionShape
) -> torch.Tensor:
    attention.begin(inputs)
    return attention.attend(queries, 1, shape).float()


@pytest.mark.parametrize(
    "shape", [AttentionShape(0.2), AttentionShape(0.2, window=20), AttentionShape(0.2, softcap=5.0)]
)
def test_gathered_attention_in_bf16_errs_by_rounding_only(shape: AttentionShape) -> None:
    torch.manual_seed(0)
    config = make_config(8, 1, 64)
    pool, inputs = make_pool(config, torch.bfloat16), make_inputs(STEPS["mixed"])
    queries = torch.randn((inputs.num_tokens, 8, 64)).bfloat16()
    assert_is_rounding(attend_all(TorchAttention(pool), inputs, queries, shape), pool, inputs, queries, shape)


def tiled_attention(config: LlamaConfig, pool: KVPool, has_bf16_products: bool) -> TiledAttention:
    if has_bf16_products and not detect().has_avx512_bf16:
        pytest.skip("the processor has no AVX-512 BF16")
    return TiledAttention(pool, config.num_heads, has_bf16_products)


@pytest.mark.parametrize("has_bf16_products", [False, True])
@pytest.mark.parametrize(
    "shape", [AttentionShape(0.2), AttentionShape(0.2, window=20), AttentionShape(0.2, softcap=5.0)]
)
@pytest.mark.parametrize("heads", [(6, 2, 32), (4, 4, 16), (8, 1, 128), (9, 3, 64), (2, 2, 80)])
def test_tiled_attention_of_chunks_equals_torchs(
    heads: tuple[int, int, int], shape: AttentionShape, has_bf16_products: bool
) -> None:
    torch.manual_seed(0)
    config = make_config(*heads)
    pool = make_pool(config, torch.bfloat16)
    inputs = make_inputs([(100, 1), (0, 128), (7, 3), (40, 70), (127, 1)])
    queries = torch.randn((inputs.num_tokens, config.num_heads, config.head_size)).bfloat16()
    attention = tiled_attention(config, pool, has_bf16_products)
    outputs = attend_by_both(attention, pool, inputs, [1, 3], queries, shape)
    bound = RESULT_ROUNDINGS * UNIT_ROUNDOFF[torch.bfloat16] * float(pool.storage.abs().max())  # of any weighted mean
    torch.testing.assert_close(outputs[0], outputs[1], atol=bound, rtol=0.0)
    assert outputs[0][[0, 129, 131, 202]].eq(9.0).all(), "other sequences' rows must stay as they are"


@pytest.mark.parametrize("has_bf16_products", [False, True])
@pytest.mark.parametrize("window", [None, 20, 300])
def test_tiled_attention_over_several_blocks_of_keys_errs_less_than_rounding(
    window: int | None, has_bf16_products: bool
) -> None:
    torch.manual_seed(0)
    config = make_config(9, 3, 64)
    pool = make_pool(config, torch.bfloat16)
    inputs = make_inputs([(400, 75), (1, 511)], max_len=512)
    queries = torch.randn((inputs.num_tokens, config.num_heads, config.head_size)).bfloat16()
    attention = tiled_attention(config, pool, has_bf16_products)
    mine, reference = attend_by_both(attention, pool, inputs, [0, 1], queries, AttentionShape(0.125, window))
    rounding = (reference.bfloat16().float() - reference).square().mean().sqrt()
    assert (mine - reference).square().mean().sqrt() < 2 * rounding, "weights and results are rounded, no sum is"


def attend_by_both(
    attention: TiledAttention,
    pool: KVPool,
    inputs: StepInputs,
    chosen: list[int],
    queries: torch.Tensor,
    shape: AttentionShape,
) -> list[torch.Tensor]:
    """Return, in float32, what the tiles and torch in float32 write for the chosen segments, over rows of nines."""
    outputs = []
    for each, q in ((attention, queries), (TorchAttention(in_float32(pool)), queries.float())):
        each.begin_segments(inputs, [inputs.segments[index] for index in chosen])
        out = torch.full_like(q, 9.0)
        each.attend_into(out, q, 1, shape)
        outputs.append(out.float())
    return outputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_layer_operations_equal_torchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config, inputs = make_config(), make_inputs(STEPS["mixed"])
    num_tokens = inputs.num_tokens
    pools = [make_pool(config, dtype), make_pool(config, dtype)]
    pools[1].storage.copy_(pools[0].storage)
    compiled = CompiledLayerOps(config, pools[0], compiled_attention(config, pools[0]), max_tokens=256)
    plain = TorchLayerOps(config, pools[1], TorchAttention(pools[1]))
    qkv = torch.randn((num_tokens, 10 * 32)).to(dtype)
    hidden, delta = torch.randn((num_tokens, 64)), torch.randn((num_tokens, 64)).to(dtype)
    weight, gate_up = torch.randn(64), (4 * torch.randn((num_tokens, 192))).to(dtype)
    results = []
    for ops in (compiled, plain):
        ops.begin(inputs)
        stream = hidden.clone()
        normed = ops.add_norm(stream, delta, weight).clone()
        queries = ops.rotate_and_store(qkv, 1).clone()
        results.append([stream, normed, queries, ops.silu_multiply(gate_up).clone()])
    results[0].append(pools[0].storage)
    results[1].append(pools[1].storage)
    for mine, reference in zip(*results, strict=True):
        tolerance = ELEMENT_WISE_ROUNDINGS * UNIT_ROUNDOFF[dtype]
        torch.testing.assert_close(mine, reference, atol=4 * tolerance, rtol=tolerance)  # values of up to 4


def test_float32_attention_of_a_token_is_bitwise_the_same_in_any_step() -> None:
    torch.manual_seed(0)
    config = make_config()
    pool = make_pool(config, torch.float32)
    attention = compiled_attention(config, pool)
    queries = torch.randn((60, config.num_heads, config.head_size))
    shape = AttentionShape(0.2)
    attention.begin(make_inputs([(40, 60)]))
    together = attention.attend(queries, 0, shape).clone()
    for index in (0, 17, 59):
        attention.begin(make_inputs([(40 + index, 1)]))
        alone = attention.attend(queries[index : index + 1], 0, shape)
        assert torch.equal(alone[0], together[index])


def test_bounds_share_the_cost_evenly() -> None:
    assert balanced_bounds([1.0] * 8, 2).tolist() == [0, 4, 8]
    assert balanced_bounds([], 2).tolist() == [0, 0, 0]
    assert balanced_bounds([9.0, 1.0, 1.0, 1.0], 2).tolist() in ([0, 0, 4], [0, 1, 4])


def test_checkpointed_slots_come_back_elsewhere() -> None:
    from kv.types import SlotCopy

    pool = make_pool(make_config(), torch.float32)
    before = pool.storage[:, [3, 900]].clone()
    host = np.array([5, 1], np.int32)
    pool.copy_out(SlotCopy(np.array([3, 900], np.int32), host))
    pool.storage.zero_()
    pool.copy_in(SlotCopy(np.array([77, 2], np.int32), host))
    assert torch.equal(pool.storage[:, [77, 2]], before)
    assert int(pool.storage.count_nonzero()) == int(before.count_nonzero())
