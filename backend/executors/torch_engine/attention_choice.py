"""Which attention kernels a model can have: the one ordered table, and what goes with each between two products."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from backend.core.errors import ConfigError
from backend.core.executor import ExecutorCapacity
from backend.executors.torch_engine.attention import SlotAttention, TorchAttention
from backend.executors.torch_engine.kv_pool import KVPool
from backend.executors.torch_engine.layer_ops import LayerOps, LlamaConfig, TorchLayerOps
from backend.executors.torch_engine.llama import LlamaWeights, SmallStepLayers
from backend.executors.torch_engine.processor import Processor
from backend.executors.torch_engine.settings import AttentionKernel

_log = logging.getLogger(__name__)

_MAX_PAGED_HEAD_SIZE = 256
_MIN_PAGED_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where attention happens: over `pool`, for `num_heads` query heads, in steps as large as `capacity` allows."""

    pool: KVPool
    num_heads: int
    capacity: ExecutorCapacity
    processor: Processor

    @property
    def is_cpu(self) -> bool:
        return self.pool.storage.device.type == "cpu"


@dataclass(frozen=True, slots=True)
class Kernels:
    """One way to run the work between two products.

    why_not: names the missing part, None if it runs. layer_ops: of a Llama-family model over that attention.
    small_steps: all layers of a small step at once, None where that is not possible. is_for_cpu: a CPU without it is
    slower than it could be.
    """

    kernel: AttentionKernel
    why_not: Callable[[Place], str | None]
    attention: Callable[[Place], SlotAttention]
    layer_ops: Callable[[LlamaConfig, Place, SlotAttention], LayerOps]
    small_steps: Callable[[LlamaWeights, LayerOps], SmallStepLayers | None]
    is_for_cpu: bool = False


def choose_kernels(wanted: AttentionKernel, place: Place) -> Kernels:
    """Return the first kernels of `KERNELS` that run; raises ConfigError where those that are wanted do not."""
    if wanted is not AttentionKernel.AUTO:
        chosen = next(each for each in KERNELS if each.kernel is wanted)
        if reason := chosen.why_not(place):
            raise ConfigError(f"torch.attention: {wanted.value!r} needs {reason}")
        return chosen
    for each in KERNELS:
        reason = each.why_not(place)
        if reason is None:
            return each
        if each.is_for_cpu is place.is_cpu:
            _log.warning("no %s kernels, steps will be slower: they need %s", each.kernel.value, reason)
    raise AssertionError("plain torch runs everywhere")


def has_compiled_kernels() -> bool:
    """True where numba is there to compile them."""
    return _import_problem() is None


def _import_problem() -> str | None:
    try:
        import backend.executors.torch_engine.compiled_ops  # noqa: F401 - whether it imports is the question
    except ImportError as error:
        return f"numba: {error}"
    return None


def _compiled_why_not(place: Place) -> str | None:
    if not place.is_cpu:
        return "a CPU"
    return _import_problem()


def _compiled_attention(place: Place) -> SlotAttention:
    from backend.executors.torch_engine.compiled_ops import CompiledAttention

    capacity = place.capacity
    return CompiledAttention(
        place.pool, place.num_heads, capacity.max_tokens_per_step, capacity.max_seq_len, place.processor
    )


def _compiled_layer_ops(config: LlamaConfig, place: Place, attention: SlotAttention) -> LayerOps:
    """The compiled operations work on whole vectors."""
    from backend.executors.torch_engine.compiled_ops import CompiledAttention, CompiledLayerOps

    if config.hidden_size % 16 or config.intermediate_size % 16:
        return TorchLayerOps(config, place.pool, attention)
    assert isinstance(attention, CompiledAttention)
    return CompiledLayerOps(config, place.pool, attention, place.capacity.max_tokens_per_step)


def _compiled_small_steps(weights: LlamaWeights, ops: LayerOps) -> SmallStepLayers | None:
    from backend.executors.torch_engine.compiled_ops import CompiledLayerOps
    from backend.executors.torch_engine.layer_program import layer_program

    return layer_program(weights, ops) if isinstance(ops, CompiledLayerOps) else None


def _paged_why_not(place: Place) -> str | None:
    device, head_size = place.pool.storage.device, place.pool.shape.head_size
    if device.type != "cuda":
        return "a CUDA device"
    if head_size > _MAX_PAGED_HEAD_SIZE:
        return f"heads of at most {_MAX_PAGED_HEAD_SIZE}, not {head_size}"
    if (capability := torch.cuda.get_device_capability(device)) < _MIN_PAGED_CAPABILITY:
        return f"compute capability {_MIN_PAGED_CAPABILITY}, not {capability}"
    try:
        import triton.language  # noqa: F401 # the language of the kernel; CUDA builds of torch bring it
    except ImportError as error:
        return f"the Triton language: {error}"
    return None


def _paged_attention(place: Place) -> SlotAttention:
    from backend.executors.torch_engine.paged_attention import PagedAttention

    return PagedAttention(place.pool, place.num_heads)


def _torch_attention(place: Place) -> SlotAttention:
    is_emulated = place.is_cpu and not place.processor.has_bf16_products
    return TorchAttention(place.pool, torch.float32 if is_emulated else None)


def _torch_layer_ops(config: LlamaConfig, place: Place, attention: SlotAttention) -> LayerOps:
    return TorchLayerOps(config, place.pool, attention)


def _no_small_steps(_weights: LlamaWeights, _ops: LayerOps) -> SmallStepLayers | None:
    return None


# In order of preference; the last one runs everywhere.
KERNELS = (
    Kernels(
        AttentionKernel.COMPILED,
        _compiled_why_not,
        _compiled_attention,
        _compiled_layer_ops,
        _compiled_small_steps,
        is_for_cpu=True,
    ),
    Kernels(AttentionKernel.PAGED, _paged_why_not, _paged_attention, _torch_layer_ops, _no_small_steps),
    Kernels(AttentionKernel.TORCH, lambda _place: None, _torch_attention, _torch_layer_ops, _no_small_steps),
)
