"""The compiled kernels as attention and layer operations: packs their arguments and hands them to torch's threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backend.executors.torch_engine import kernels
from backend.executors.torch_engine.attention import AttentionShape, SegmentAttention, TorchAttention
from backend.executors.torch_engine.chunk_kernel import HEAD_STEP, TILE, compile_chunk_kernel
from backend.executors.torch_engine.inputs import Segment, StepInputs
from backend.executors.torch_engine.kernel_cache import Kernel
from backend.executors.torch_engine.kernels import compile_kernels
from backend.executors.torch_engine.kv_pool import KVPool
from backend.executors.torch_engine.layer_ops import LlamaConfig, rotary_tables
from backend.executors.torch_engine.processor import Processor
from backend.executors.torch_engine.team import MAX_THREADS, run_on_team

_UNLIMITED_WINDOW = 1 << 40
_MIN_TOKENS_PER_THREAD = 4  # below that, waking the team costs more than an element-wise kernel
# A bf16 chunk of this many tokens or more shares its passes over keys and values. In float32 the kernel for single
# tokens computes every chunk, so that a token's result never depends on its chunk.
MIN_CHUNK_TOKENS = 8


class CompiledAttention:
    """Attention by the compiled kernels: token by token, and long bf16 chunks tile by tile."""

    def __init__(self, pool: KVPool, num_heads: int, max_tokens: int, max_seq_len: int, processor: Processor) -> None:
        shape = pool.shape
        self._pool = pool
        self._is_bf16 = shape.dtype is torch.bfloat16
        self._chunks = chunk_attention(pool, num_heads, processor)
        self._num_threads = min(torch.get_num_threads(), MAX_THREADS)
        self.kernels = compile_kernels(shape.head_size, num_heads // shape.num_kv_heads, self._is_bf16)
        self._out = torch.empty((max_tokens, num_heads, shape.head_size), dtype=shape.dtype)
        scratch_width = max_seq_len + kernels.SCRATCH_PADDING
        self._scratch = torch.empty(self._num_threads * num_heads * (scratch_width + shape.head_size))
        self.has_long = False
        self.block = Block(self.kernels.attend, self._num_threads)
        self.block.set_addresses({kernels.OUT: self._out, kernels.SCRATCH: self._scratch})
        self.block.fields[kernels.SCRATCH_WIDTH] = scratch_width
        self.block.fields[kernels.NUM_KV_HEADS] = shape.num_kv_heads

    def begin(self, inputs: StepInputs) -> None:
        table = inputs.slot_table
        assert table.strides[1] == table.itemsize, "the slot table's rows must be contiguous"
        long = [s for s in inputs.segments if self._is_bf16 and s.num_new >= MIN_CHUNK_TOKENS]
        self.has_long = bool(long)
        if long:
            self._chunks.begin_segments(inputs, long)
        is_short = np.ones(inputs.num_tokens, np.bool_)
        for segment in long:
            is_short[segment.offset : segment.offset + segment.num_new] = False
        tokens = np.flatnonzero(is_short).astype(np.int32)
        heads_per_item = self._pool.shape.num_kv_heads if len(tokens) >= 2 * self._num_threads else 1
        items_per_token = self._pool.shape.num_kv_heads // heads_per_item
        costs = np.repeat(inputs.positions[tokens] + 16, items_per_token)
        fields = self.block.fields
        fields[kernels.HEADS_PER_ITEM] = heads_per_item
        fields[kernels.SLOT_TABLE_WIDTH] = table.strides[0] // table.itemsize
        self.block.set_arrays(
            {
                kernels.BOUNDS: balanced_bounds(costs, self._num_threads),
                kernels.TOKENS: tokens,
                kernels.SLOT_TABLE: table,
                kernels.ROWS: inputs.rows,
                kernels.POSITIONS: inputs.positions,
            }
        )
        self._has_short = len(tokens) > 0

    @property
    def kernel_addresses(self) -> set[int]:
        """The kernels that attend, for whoever times them."""
        tiled = {self._chunks.kernel_address} if isinstance(self._chunks, TiledAttention) else set()
        return {self.kernels.attend.address, *tiled}

    def attend(self, queries: torch.Tensor, layer_index: int, shape: AttentionShape) -> torch.Tensor:
        out, queries = self._out[: len(queries)], queries.contiguous()
        if self._has_short:
            self.block.fields[kernels.X] = queries.data_ptr()
            self.set_layer(layer_index, shape)
            self.block.run()
        if self.has_long:
            self._chunks.attend_into(out, queries, layer_index, shape)
        return out

    def set_layer(self, layer_index: int, shape: AttentionShape) -> None:
        """Point the block at a layer."""
        _set_layer(self.block, self._pool, layer_index, shape)


def chunk_attention(pool: KVPool, num_heads: int, processor: Processor) -> SegmentAttention:
    """Return who attends from long bf16 chunks: torch where matrix units serve it, else tiles of our own.

    The tiles read and write 16 elements of a head at once, so they take multiples of that only. Without AVX-512 their
    sums would not stay in registers. Without bf16 products torch attends in float32.
    """
    if processor.has_amx or not processor.has_avx512 or pool.shape.head_size % HEAD_STEP:
        return TorchAttention(pool, None if processor.has_bf16_products else torch.float32)
    return TiledAttention(pool, num_heads, processor.has_avx512_bf16)


class TiledAttention:
    """Attention of bf16 chunks by the compiled kernel, without gathering K and V."""

    def __init__(self, pool: KVPool, num_heads: int, has_bf16_products: bool) -> None:
        shape = pool.shape
        self._pool = pool
        self._num_threads = min(torch.get_num_threads(), MAX_THREADS)
        kernel = compile_chunk_kernel(shape.head_size, num_heads // shape.num_kv_heads, has_bf16_products)
        self._scratch = torch.empty(self._num_threads * kernel.scratch_size)
        self.kernel_address: int = kernel.attend.address
        self._block = Block(kernel.attend, self._num_threads)
        self._block.set_addresses({kernels.SCRATCH: self._scratch})
        self._block.fields[kernels.NUM_KV_HEADS] = shape.num_kv_heads

    def begin_segments(self, inputs: StepInputs, segments: Sequence[Segment]) -> None:
        tiles = [
            (segment.offset + start, min(TILE, segment.num_new - start), segment.start + start)
            for segment in segments
            for start in range(0, segment.num_new, TILE)
        ]
        costs = np.repeat([n * (position + TILE) for _, n, position in tiles], self._pool.shape.num_kv_heads)
        table = inputs.slot_table
        self._block.fields[kernels.SLOT_TABLE_WIDTH] = table.strides[0] // table.itemsize
        self._block.set_arrays(
            {
                kernels.BOUNDS: balanced_bounds(costs, self._num_threads),
                kernels.TOKENS: np.array([tile[:2] for tile in tiles], np.int64),
                kernels.SLOT_TABLE: table,
                kernels.ROWS: inputs.rows,
                kernels.POSITIONS: inputs.positions,
            }
        )

    def attend_into(self, out: torch.Tensor, queries: torch.Tensor, layer_index: int, shape: AttentionShape) -> None:
        self._block.set_addresses({kernels.OUT: out, kernels.X: queries})
        _set_layer(self._block, self._pool, layer_index, shape)
        self._block.run()


def _set_layer(block: Block, pool: KVPool, layer_index: int, shape: AttentionShape) -> None:
    block.fields[kernels.POOL] = pool.storage.data_ptr() + layer_index * pool.storage.stride(0) * pool.storage.itemsize
    block.fields[kernels.WINDOW] = shape.window or _UNLIMITED_WINDOW
    block.numbers[kernels.SCALE] = shape.scale
    block.numbers[kernels.SOFTCAP] = shape.softcap or 0.0


class CompiledLayerOps:
    """`LayerOps` by the compiled kernels; buffers are made once, for `max_tokens` tokens."""

    def __init__(self, config: LlamaConfig, pool: KVPool, attention: CompiledAttention, max_tokens: int) -> None:
        shape = pool.shape
        self.config = config
        self.pool = pool
        self.attention = attention
        self.num_threads = min(torch.get_num_threads(), MAX_THREADS)
        self._bounds: dict[int, NDArray[np.int64]] = {}
        self._tables = rotary_tables(config)
        self._normed = torch.empty((max_tokens, config.hidden_size), dtype=shape.dtype)
        self._queries = torch.empty((max_tokens, config.num_heads, config.head_size), dtype=shape.dtype)
        self._activated = torch.empty((max_tokens, config.intermediate_size), dtype=shape.dtype)
        self._layer_bytes = pool.storage[0].nbytes
        self.norm_block = self._make_norm_block(attention.kernels.add_norm)
        self.rotate_block = self._make_rotate_block(attention.kernels.rotate_and_store)
        self.silu_block = self._make_silu_block(attention.kernels.silu_multiply)

    def begin(self, inputs: StepInputs) -> None:
        self.attention.begin(inputs)
        bounds = self._even_bounds(inputs.num_tokens)
        arrays = {kernels.BOUNDS: bounds, kernels.POSITIONS: inputs.positions, kernels.SLOTS: inputs.slots}
        self.rotate_block.set_arrays(arrays)
        self.silu_block.set_arrays({kernels.BOUNDS: bounds})

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        block = self.norm_block
        num_tokens = len(hidden)
        block.set_arrays({kernels.BOUNDS: self._even_bounds(num_tokens)})
        block.fields[kernels.HIDDEN] = hidden.data_ptr()
        block.fields[kernels.X] = 0 if delta is None else delta.data_ptr()
        block.fields[kernels.WEIGHT] = weight.data_ptr()
        block.run()
        return self._normed[:num_tokens]

    def rotate_and_store(self, qkv: torch.Tensor, layer_index: int) -> torch.Tensor:
        fields = self.rotate_block.fields
        fields[kernels.X] = qkv.data_ptr()
        fields[kernels.POOL] = self.pool.storage.data_ptr() + layer_index * self._layer_bytes
        self.rotate_block.run()
        return self._queries[: len(qkv)]

    def attend(self, queries: torch.Tensor, layer_index: int) -> torch.Tensor:
        return self.attention.attend(queries, layer_index, self.config.attention_shape).view(len(queries), -1)

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        self.silu_block.fields[kernels.X] = gate_up.data_ptr()
        self.silu_block.run()
        return self._activated[: len(gate_up)]

    def _make_norm_block(self, kernel: Kernel) -> Block:
        block = Block(kernel, self.num_threads)
        block.set_addresses({kernels.OUT: self._normed})
        block.fields[kernels.WIDTH] = self.config.hidden_size
        block.numbers[kernels.EPSILON] = self.config.norm_eps
        return block

    def _make_rotate_block(self, kernel: Kernel) -> Block:
        cos, sin = self._tables
        block = Block(kernel, self.num_threads)
        block.set_addresses({kernels.OUT: self._queries, kernels.COS: cos, kernels.SIN: sin})
        block.fields[kernels.NUM_HEADS] = self.config.num_heads
        block.fields[kernels.NUM_KV_HEADS] = self.config.num_kv_heads
        return block

    def _make_silu_block(self, kernel: Kernel) -> Block:
        block = Block(kernel, self.num_threads)
        block.set_addresses({kernels.OUT: self._activated})
        block.fields[kernels.WIDTH] = self.config.intermediate_size
        return block

    def _even_bounds(self, num_tokens: int) -> NDArray[np.int64]:
        """Return the bounds of each thread's tokens; few tokens stay with the first thread."""
        if num_tokens not in self._bounds:
            num_threads = max(1, min(self.num_threads, num_tokens // _MIN_TOKENS_PER_THREAD))
            self._bounds[num_tokens] = balanced_bounds(np.ones(num_tokens), num_threads)
        return self._bounds[num_tokens]


class Block:
    """The argument of a kernel: `fields` int64, and `numbers`, the same bytes read as float64."""

    def __init__(self, kernel: Kernel, num_threads: int) -> None:
        self.fields = np.zeros(kernels.NUM_FIELDS, np.int64)
        self.numbers = self.fields.view(np.float64)
        self.kernel = kernel
        self._kernel_address: int = kernel.address
        self._address = self.fields.ctypes.data
        self._num_threads = num_threads
        self._arrays: dict[int, NDArray[Any]] = {}  # keeps what the fields point at alive

    def set_addresses(self, tensors: dict[int, torch.Tensor]) -> None:
        """Point fields at tensors that outlive the block."""
        for field, tensor in tensors.items():
            self.fields[field] = tensor.data_ptr()

    def set_arrays(self, arrays: Mapping[int, NDArray[Any]]) -> None:
        """Point fields at arrays; the bounds also say how many threads run."""
        for field, array in arrays.items():
            if self._arrays.get(field) is not array:
                self._arrays[field] = array
                self.fields[field] = array.ctypes.data
        self._num_threads = len(self._arrays[kernels.BOUNDS]) - 1

    def run(self) -> None:
        run_on_team(self._kernel_address, self._address, self._num_threads, 0)


def balanced_bounds(costs: Sequence[float] | NDArray[Any], num_threads: int) -> NDArray[np.int64]:
    """Split items into one contiguous range per thread, of about equal cost; int64 [num_threads + 1]."""
    cumulative = np.cumsum(costs)
    total = cumulative[-1] if len(cumulative) else 0
    inner = np.searchsorted(cumulative, total * np.arange(1, num_threads) / num_threads, side="right")
    return np.concatenate([[0], inner, [len(cumulative)]]).astype(np.int64)
