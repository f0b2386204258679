"""Storage of K and V: one pool of slots per layer on the device, and a host pool that checkpoints go to.

L layers, S slots, G key-value heads, D head size.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from dataclasses import dataclass

import numpy as np
import torch

from kv.types import SlotCopy

_TRIED_TOKENS, _TRIES = 64, 5  # when the speed of copies is measured


@dataclass(frozen=True, slots=True)
class KVShape:
    """The size of one token's K and V."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.dtype.itemsize


class KVPool:
    """K and V by slot: `storage` [L, S, 2, G, D], so a token's K and V of a layer lie side by side."""

    def __init__(self, shape: KVShape, num_slots: int, num_host_slots: int, device: torch.device) -> None:
        self.shape = shape
        token_size = (2, shape.num_kv_heads, shape.head_size)
        self.storage = torch.empty((shape.num_layers, num_slots, *token_size), dtype=shape.dtype, device=device)
        if device.type == "cpu":
            _advise_huge_pages(self.storage)
        self.storage.zero_()
        # A host slot holds all layers of a token side by side: a checkpoint of a token is one run of bytes. Memory that
        # was never written costs none.
        self._host = torch.empty(
            (num_host_slots, shape.num_layers, *token_size), dtype=shape.dtype, pin_memory=device.type == "cuda"
        )

    def keys(self, layer_index: int) -> torch.Tensor:
        """Return a view [S, G, D]."""
        return self.storage[layer_index, :, 0]

    def values(self, layer_index: int) -> torch.Tensor:
        """Return a view [S, G, D]."""
        return self.storage[layer_index, :, 1]

    def write(self, layer_index: int, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        """Store K and V [N, G, D] of N tokens at `slots` int64 [N]."""
        self.storage[layer_index].index_copy_(0, slots, torch.stack([keys, values], 1))

    def copy_out(self, copy: SlotCopy) -> None:
        """Checkpoint device slots to host slots."""
        device_slots, host_slots = self._indices(copy)
        self._host.index_copy_(0, host_slots, self.storage[:, device_slots].transpose(0, 1).to("cpu"))

    def copy_in(self, copy: SlotCopy) -> None:
        """Bring host slots back to device slots."""
        device_slots, host_slots = self._indices(copy)
        self.storage.index_copy_(1, device_slots, self._host[host_slots].transpose(0, 1).to(self.storage.device))

    def measure_copy_s_per_token(self) -> float:
        """Return the time a token takes to the host pool or back, the best of some tries; only for an unused pool."""
        num_tokens = min(_TRIED_TOKENS, self.storage.shape[1], len(self._host))
        if num_tokens == 0:
            return 0.0
        slots = np.arange(num_tokens, dtype=np.int32)
        return min(self._seconds_of_copies(SlotCopy(slots, slots)) for _ in range(_TRIES)) / (2 * num_tokens)

    def _seconds_of_copies(self, copy: SlotCopy) -> float:
        started_s = time.perf_counter()
        self.copy_out(copy)
        self.copy_in(copy)
        return time.perf_counter() - started_s

    def _indices(self, copy: SlotCopy) -> tuple[torch.Tensor, torch.Tensor]:
        device_slots = torch.from_numpy(copy.device_slots).to(self.storage.device, torch.int64)
        return device_slots, torch.from_numpy(copy.host_slots).to(torch.int64)


def _advise_huge_pages(tensor: torch.Tensor) -> None:
    """Ask for large pages before memory is touched: scattered slots otherwise wait for address translation.

    Advice only: where the system has none to give, nothing changes.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    num_bytes = tensor.data_ptr() + tensor.nbytes - first
    if num_bytes > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(num_bytes), mmap.MADV_HUGEPAGE)
