"""Values of the KV cache: sides, layouts, configuration, copies and usage."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from kv.errors import KVConfigError

MAX_BLOCK_SIZE = 4096  # a rank below 4 * MAX_BLOCK_SIZE must fit int16
MAX_SLOTS = 2**31 - 1  # slots are int32

Row = NewType("Row", int)  # the index of a row in the slot table; a request or the cache has it


class Side(enum.Enum):
    """The end from which a row fills a block: real-time from the head, best-effort from the tail."""

    HEAD = "head"
    TAIL = "tail"


class Layout(enum.Enum):
    """How rows take blocks. Heads take free blocks from one end of the pool, tails from the other.

    TWO_ENDED      a head and a tail may share a block
    UNSHARED       one row a block, for the ablation
    WHOLE_BLOCK    one row a block, and every row fills it from the left, for engines that can do no other
    """

    TWO_ENDED = "two_ended"
    UNSHARED = "unshared"
    WHOLE_BLOCK = "whole_block"


@dataclass(frozen=True, slots=True)
class KVConfig:
    """Size and layout of the cache.

    num_host_slots     slots of the host pool; 0 means that a preempted request recomputes
    num_host_prefix_slots   slots of the host behind those, for evicted segments that real-time used
    evicts_by_class    rows that a head used are evicted last; otherwise the last use alone decides
    """

    num_blocks: int
    block_size: int = 16
    max_seq_len: int = 8192
    num_host_slots: int = 0
    layout: Layout = Layout.TWO_ENDED
    evicts_by_class: bool = True
    num_host_prefix_slots: int = 0

    def __post_init__(self) -> None:
        """Raise KVConfigError where a size is out of range."""
        _check_range("num_blocks", self.num_blocks, 1, MAX_SLOTS)
        _check_range("block_size", self.block_size, 1, MAX_BLOCK_SIZE)
        _check_range("num_slots", self.num_slots, 1, MAX_SLOTS)
        _check_range("max_seq_len", self.max_seq_len, 1, MAX_SLOTS)
        _check_range("num_host_slots", self.num_host_slots, 0, MAX_SLOTS)
        _check_range("num_host_prefix_slots", self.num_host_prefix_slots, 0, MAX_SLOTS - self.num_host_slots)

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """Pairs of slots to copy between the device pool and the host pool: two arrays, int32 [n]."""

    device_slots: NDArray[np.int32]
    host_slots: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.device_slots)


NO_COPIES = SlotCopy(np.empty(0, np.int32), np.empty(0, np.int32))


@dataclass(frozen=True, slots=True)
class KVUsage:
    """Slots by state, and blocks by holder. No request has the cached slots, but requests may borrow some of them."""

    num_free_slots: int
    num_head_slots: int
    num_tail_slots: int
    num_free_blocks: int
    num_head_blocks: int
    num_tail_blocks: int
    num_shared_blocks: int
    num_host_slots_used: int
    num_cached_slots: int = 0
    num_host_prefix_slots_used: int = 0


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise KVConfigError(f"{name}: {value} is not in [{low}, {high}]")
