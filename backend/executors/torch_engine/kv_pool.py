"""Storage of K and V: one pool of slots per layer on the device, and a host pool that checkpoints go to.

L layers, S slots, G key-value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kv.types import SlotCopy


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
    """K and V by slot. `keys` and `values`: [L, S, G, D]."""

    def __init__(self, shape: KVShape, num_slots: int, num_host_slots: int, device: torch.device) -> None:
        size = (shape.num_layers, num_slots, shape.num_kv_heads, shape.head_size)
        self.keys = torch.zeros(size, dtype=shape.dtype, device=device)
        self.values = torch.zeros(size, dtype=shape.dtype, device=device)
        # A host slot holds a token's K and V of all layers side by side, so a checkpoint is one run of bytes.
        host_size = (num_host_slots, 2, shape.num_layers, shape.num_kv_heads, shape.head_size)
        self._host = torch.zeros(host_size, dtype=shape.dtype, pin_memory=device.type == "cuda")

    def write(self, layer_index: int, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        """Store K and V [N, G, D] of N tokens at `slots` int64 [N]."""
        self.keys[layer_index].index_copy_(0, slots, keys)
        self.values[layer_index].index_copy_(0, slots, values)

    def copy_out(self, copy: SlotCopy) -> None:
        """Checkpoint device slots to host slots."""
        device_slots, host_slots = self._indices(copy)
        for index, pool in enumerate((self.keys, self.values)):
            self._host[:, index].index_copy_(0, host_slots, pool[:, device_slots].transpose(0, 1).to("cpu"))

    def copy_in(self, copy: SlotCopy) -> None:
        """Bring host slots back to device slots."""
        device_slots, host_slots = self._indices(copy)
        for index, pool in enumerate((self.keys, self.values)):
            pool.index_copy_(1, device_slots, self._host[host_slots, index].transpose(0, 1).to(pool.device))

    def _indices(self, copy: SlotCopy) -> tuple[torch.Tensor, torch.Tensor]:
        device_slots = torch.from_numpy(copy.device_slots).to(self.keys.device, torch.int64)
        return device_slots, torch.from_numpy(copy.host_slots).to(torch.int64)
