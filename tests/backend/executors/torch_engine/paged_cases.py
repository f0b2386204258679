"""Cases of the paged attention kernel, run on any device: in Triton's interpreter on the CPU, or on a GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from backend.executors.torch_engine.attention import AttentionShape, TorchAttention
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.paged_attention import PagedAttention
from tests.backend.executors.torch_engine.test_compiled_ops import NUM_SLOTS, make_inputs

NUM_LAYERS, LAYER = 2, 1
# Half of the distance between 1 and the next larger number.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FLOAT32_SLACK = 2e-5  # sums of up to 128 terms in another order


@dataclass(frozen=True, slots=True)
class Case:
    """One step: `parts` are sequences of (computed, new) tokens; `heads` are H, G and D."""

    parts: tuple[tuple[int, int], ...]
    heads: tuple[int, int, int]
    shape: AttentionShape
    dtype: torch.dtype


HEADS_AND_SHAPES = {
    "grouped": ((6, 2, 32), AttentionShape(0.2)),
    "tiny model": ((4, 2, 16), AttentionShape(0.25)),
    "window": ((4, 2, 16), AttentionShape(0.2, window=20)),
    "softcap": ((8, 1, 64), AttentionShape(0.2, softcap=5.0)),
    "odd head": ((3, 3, 20), AttentionShape(0.2, window=33, softcap=3.0)),
    "wide group": ((20, 1, 8), AttentionShape(0.3)),
}
# Small: the interpreter takes some milliseconds for a tile and a block of 32 keys.
STEPS = {
    "decodes": ((90, 1), (0, 1)),
    "chunk": ((40, 30),),
    "mixed": ((100, 1), (0, 20), (31, 3), (63, 1)),
}
CASES = {
    f"{step}, {name}, {str(dtype).removeprefix('torch.')}": Case(parts, heads, shape, dtype)
    for step, parts in STEPS.items()
    for name, (heads, shape) in HEADS_AND_SHAPES.items()
    for dtype in ROUNDING
    if step == "mixed" or dtype is torch.float32
}
WHOLE_CHUNK = (33, 12)
CHUNKED = [("grouped", 1), ("window", 5), ("softcap", 5)]


def error_ratio(case: Case, device: torch.device) -> float:
    """Return the largest error against plain attention in float32, in units of what the dtype's rounding explains.

    Weights are rounded once, each by `ROUNDING` of itself, and so is the result.
    """
    pool, inputs, queries = _step(case, device)
    mine = _attend(PagedAttention(pool, case.heads[0]), inputs, queries, case.shape)
    twin = _in_float32(pool)
    reference = _attend(TorchAttention(twin), inputs, queries.float(), case.shape)
    twin.values(LAYER).abs_()
    of_absolutes = _attend(TorchAttention(twin), inputs, queries.float(), case.shape)
    bound = ROUNDING[case.dtype] * (of_absolutes + reference.abs()) + FLOAT32_SLACK
    assert mine.shape == reference.shape
    assert mine.isfinite().all()
    return float(((mine - reference).abs() / bound).max())


def differing_tokens(name: str, chunk: int, device: torch.device) -> list[int]:
    """Return which tokens of a float32 prompt get other bits when it comes in chunks, beside another sequence."""
    start, num_new = WHOLE_CHUNK
    heads, shape = HEADS_AND_SHAPES[name]
    case = Case((WHOLE_CHUNK,), heads, shape, torch.float32)
    pool, inputs, queries = _step(case, device)
    attention = PagedAttention(pool, heads[0])
    whole = _attend(attention, inputs, queries, shape)
    differing: list[int] = []
    for first in range(0, num_new, chunk):
        part = queries[first : first + chunk]
        step = make_inputs([(start + first, len(part)), (first, 1)])
        again = _attend(attention, step, torch.cat([part, queries[:1]]), shape)[: len(part)]
        is_other = (again != whole[first : first + chunk]).flatten(1).any(1)
        differing += (first + is_other.nonzero()[:, 0]).tolist()
    return differing


def _step(case: Case, device: torch.device) -> tuple[KVPool, StepInputs, torch.Tensor]:
    torch.manual_seed(0)
    num_heads, num_kv_heads, head_size = case.heads
    pool = KVPool(KVShape(NUM_LAYERS, num_kv_heads, head_size, case.dtype), NUM_SLOTS, 0, device)
    pool.storage.copy_(torch.randn(pool.storage.shape))
    inputs = make_inputs(list(case.parts))
    # Queries as the layers hand them over: a slice of rows that also hold keys.
    rows = torch.randn((inputs.num_tokens, num_heads + num_kv_heads, head_size)).to(device, case.dtype)
    return pool, inputs, rows[:, :num_heads]


def _attend(
    attention: PagedAttention | TorchAttention, inputs: StepInputs, queries: torch.Tensor, shape: AttentionShape
) -> torch.Tensor:
    attention.begin(inputs)
    return attention.attend(queries, LAYER, shape).float()


def _in_float32(pool: KVPool) -> KVPool:
    copy = KVPool(dataclasses.replace(pool.shape, dtype=torch.float32), NUM_SLOTS, 0, pool.storage.device)
    copy.storage.copy_(pool.storage)
    return copy
