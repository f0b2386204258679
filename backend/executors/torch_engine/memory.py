"""How large the KV pools can be, and whether a model fits at all."""

from __future__ import annotations

import torch

from backend.core.errors import ConfigError
from backend.core.executor import ExecutorCapacity
from backend.executors.torch_engine.kv_pool import KVShape
from backend.executors.torch_engine.settings import TorchSettings

_GIB = 1 << 30
_KV_SHARE_OF_FREE_MEMORY = 0.25  # at most, on a CPU, which other programs share
_DEFAULT_KV_BYTES = _GIB // 2  # 23,000 tokens of SmolLM2-135M in bf16; keeps its engine below 2 GB
_KV_SHARE_OF_FREE_DEVICE_MEMORY = 0.85


def plan_capacity(settings: TorchSettings, shape: KVShape, weight_bytes: int, max_positions: int) -> ExecutorCapacity:
    """Return what the executor will hold. Raises ConfigError, naming the bytes needed, where that does not fit."""
    device = torch.device(settings.device)
    free_bytes = available_bytes(device) - weight_bytes
    max_seq_len = min(settings.max_model_len or max_positions, max_positions)
    num_tokens = _num_kv_tokens(settings, shape, free_bytes, max_seq_len, device)
    num_host_slots = int(settings.host_kv_gib * _GIB) // shape.bytes_per_token
    needed_bytes = num_tokens * shape.bytes_per_token
    if device.type == "cpu":
        needed_bytes += num_host_slots * shape.bytes_per_token
    if num_tokens < settings.block_size or needed_bytes > free_bytes:
        needed_bytes = max(needed_bytes, settings.block_size * shape.bytes_per_token)
        raise ConfigError(
            f"the model does not fit: weights need {weight_bytes} bytes and KV {needed_bytes} "
            f"({shape.bytes_per_token} a token), {weight_bytes + needed_bytes} in all; "
            f"{device} has {free_bytes + weight_bytes} free"
        )
    return ExecutorCapacity(
        block_size=settings.block_size,
        num_blocks=num_tokens // settings.block_size,
        num_host_slots=num_host_slots,
        max_seq_len=max_seq_len,
        max_tokens_per_step=settings.max_tokens_per_step,
        max_seqs_per_step=settings.max_seqs_per_step,
        weight_bytes=weight_bytes,
        kv_bytes=num_tokens * shape.bytes_per_token,
        host_kv_bytes=num_host_slots * shape.bytes_per_token,
    )


def available_bytes(device: torch.device) -> int:
    """Return the memory that can be had on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def default_kv_bytes(free_bytes: int, context_bytes: int, device: torch.device) -> int:
    """Return the default size of the KV pool.

    On a device: a fixed share of the free memory. On a CPU: half a GiB, or one whole context (`context_bytes`) if that
    is more, and at most a quarter of the free memory.
    """
    if device.type != "cpu":
        return int(max(0, free_bytes) * _KV_SHARE_OF_FREE_DEVICE_MEMORY)
    return min(int(max(0, free_bytes) * _KV_SHARE_OF_FREE_MEMORY), max(_DEFAULT_KV_BYTES, context_bytes))


def _num_kv_tokens(
    settings: TorchSettings, shape: KVShape, free_bytes: int, max_seq_len: int, device: torch.device
) -> int:
    if settings.num_kv_tokens is not None:
        return settings.num_kv_tokens
    if settings.kv_gib is not None:
        return int(settings.kv_gib * _GIB) // shape.bytes_per_token
    context_bytes = max_seq_len * shape.bytes_per_token
    return default_kv_bytes(free_bytes, context_bytes, device) // shape.bytes_per_token
