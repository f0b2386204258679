"""Where a mirror reads: another engine's requests, by handle, and its KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.core.request import Request

H_contra = TypeVar("H_contra", contravariant=True)  # the engine's own object for a request


@dataclass(frozen=True, slots=True)
class PoolSize:
    """KV blocks of `block_size` tokens that a policy may count on: on the GPU, and in the tier below it."""

    num_blocks: int
    num_host_blocks: int
    block_size: int


@dataclass(slots=True, eq=False)
class Ticket:
    """What our scheduler needs to know of a request, and what it counts for it.

    `request` belongs to the engine's thread: of it, only what the client asked for may be read by the scheduler.
    """

    request: Request
    num_preemptions: int = 0
    num_cached: int = 0  # tokens of the prompt that the engine had the KV of already
    first_scheduled_s: float | None = None


class Source(Protocol[H_contra]):
    """What a mirror asks of an engine; nothing here changes it."""

    @property
    def keeps_kv(self) -> bool:
        """Whether what a victim has computed may come back without being computed again."""
        ...

    def pool_size(self) -> PoolSize: ...

    def num_free_blocks(self) -> int:
        """Return the blocks that could be had now, of those `pool_size` counts."""
        ...

    def num_reserved_blocks(self, handle: H_contra, /) -> int:
        """Return the blocks that a request holds beyond what it has computed."""
        ...

    def positions(self, handles: Sequence[H_contra], /) -> NDArray[np.int64]:
        """Return int64 [2, requests], a new array: known tokens, and how many have their KV where the next step reads
        it. Those of a step in flight may count as computed; they are not known."""
        ...

    def num_kept(self, handle: H_contra, /) -> int | None:
        """Return how many leading positions of a victim are still there to come back; None: all that it lost."""
        ...
