"""vLLM's requests and KV pool, as the mirror of our books reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend.executors.foreign.source import PoolSize
from backend.executors.vllm.surface import VllmRequest, VllmScheduler


class Books:
    """Where vLLM's requests stand: a `Source` for the mirror."""

    def __init__(self, scheduler: VllmScheduler) -> None:
        self._manager = scheduler.kv_cache_manager
        self._pool = self._manager.block_pool
        self._block_size = scheduler.block_size
        self._has_connector = scheduler.connector is not None
        config = scheduler.vllm_config.cache_config
        self.keeps_kv = bool(config.enable_prefix_caching) or self._has_connector

    def pool_size(self) -> PoolSize:
        """Block 0 is vLLM's own. What victims computed stays in the pool until it is overwritten, so the tier below is
        as large."""
        num_blocks = self._pool.num_gpu_blocks - 1
        return PoolSize(num_blocks, num_blocks if self.keeps_kv else 0, self._block_size)

    def num_free_blocks(self) -> int:
        return int(self._pool.get_num_free_blocks())

    def num_reserved_blocks(self, _: VllmRequest) -> int:
        return 0

    def positions(self, requests: Sequence[VllmRequest]) -> NDArray[np.int64]:
        known = [request.num_tokens for request in requests]
        return np.array((known, [request.num_computed_tokens for request in requests]), np.int64)

    def num_kept(self, request: VllmRequest) -> int | None:
        """Ask the prefix cache. What a connector holds besides, only its own queue knows: all, then."""
        if self._has_connector:
            return None
        return int(self._manager.get_computed_blocks(request)[1])
