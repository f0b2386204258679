"""A connector that keeps KV blocks in the memory of this process, on any device.

It stands in for vLLM's OffloadingConnector, which asks for a GPU. vLLM's scheduler sees the same interface.
`is_async` in its extra configuration: requests wait in vLLM's own queue for what comes in, as they do there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

Copies = list[tuple[bytes, int]]  # hash of the tokens up to the end of a block, and where the block is
_HELD: dict[bytes, dict[str, Any]] = {}  # by hash, by layer


@dataclass
class Moves(KVConnectorMetadata):
    """What a step copies: in before it, out behind it."""

    into: Copies = field(default_factory=list)
    out: Copies = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)  # requests that wait for what comes in


class HostConnector(KVConnectorBase_V1):
    """Copies each full block out once, and in where the prefix cache has lost it."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_size = vllm_config.cache_config.block_size
        self._num_blocks = kv_cache_config.num_blocks
        self._requests: dict[str, Any] = {}
        self._num_cached: dict[str, int] = {}  # tokens that the prefix cache has of a request
        self._into: Copies = []
        self._layers: dict[str, Any] = {}
        self._is_async = bool(vllm_config.kv_transfer_config.get_from_extra_config("is_async", False))
        self._waiting: set[str] = set()  # requests that wait for what this step copies in

    # In the scheduler

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        self._manager = kv_cache_manager

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        self._num_cached[request.request_id] = num_computed_tokens
        first, last = num_computed_tokens // self._block_size, (request.num_tokens - 1) // self._block_size
        num_held = 0
        for block_hash in request.block_hashes[first:last]:
            if block_hash not in _HELD:
                break
            num_held += 1
        return num_held * self._block_size, self._is_async and num_held > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._requests[request.request_id] = request
        first = self._num_cached[request.request_id] // self._block_size
        held = slice(first, first + num_external_tokens // self._block_size)
        self._into += zip(request.block_hashes[held], blocks.get_block_ids()[0][held], strict=True)
        if self._is_async and num_external_tokens:
            self._waiting.add(request.request_id)

    def build_connector_meta(self, scheduler_output: Any) -> Moves:
        moves, self._into, self._waiting = Moves(self._into, waiting=self._waiting), [], set()
        for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            request = self._requests[request_id]
            num_full = (request.num_computed_tokens + num_tokens) // self._block_size
            (block_ids,) = self._manager.get_block_ids(request_id)
            full = zip(request.block_hashes[:num_full], block_ids, strict=False)
            moves.out += [copy for copy in full if copy[0] not in _HELD]
        return moves

    # In the worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._layers = kv_caches

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        del forward_context
        for block_hash, block_id in self._get_connector_metadata().into:
            for name, layer in self._layers.items():
                self._block(layer, block_id).copy_(_HELD[block_hash][name])

    def wait_for_save(self) -> None:
        for block_hash, block_id in self._get_connector_metadata().out:
            _HELD[block_hash] = {name: self._block(layer, block_id).clone() for name, layer in self._layers.items()}

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, set[str] | None]:
        del finished_req_ids
        return None, self._get_connector_metadata().waiting or None

    def reset_cache(self) -> bool:
        _HELD.clear()
        return True

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All layers are there."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """All layers are copied at the end of the step."""

    def _block(self, layer: Any, block_id: int) -> Any:
        return layer.select(list(layer.shape).index(self._num_blocks), block_id)
