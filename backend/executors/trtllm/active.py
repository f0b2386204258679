"""TensorRT-LLM's active list, as a source for the mirror (backend/executors/foreign)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend.executors.foreign.mirror import Mirror
from backend.executors.foreign.source import PoolSize
from backend.executors.trtllm.decision import ManagerAdapter, is_schedulable
from backend.executors.trtllm.surface import LlmRequest
from backend.executors.trtllm.tickets import Tickets


class ActiveRequests:
    """The state of each request in the active list: a `Source` for the mirror."""

    def __init__(self, manager: ManagerAdapter, tickets: Tickets) -> None:
        self.passed_on: list[LlmRequest] = []  # active, but not ours or not schedulable now
        self._manager = manager
        self._tickets = tickets

    @property
    def keeps_kv(self) -> bool:
        return self._manager.keeps_kv

    def pool_size(self) -> PoolSize:
        return self._manager.pool_size()

    def num_free_blocks(self) -> int:
        return self._manager.num_free_blocks()

    def num_reserved_blocks(self, llm: LlmRequest) -> int:
        return self._manager.num_reserved_blocks(llm)

    def positions(self, llms: Sequence[LlmRequest]) -> NDArray[np.int64]:
        return np.array([self._position(llm) for llm in llms], np.int64).reshape(-1, 2).T.copy()

    def _position(self, llm: LlmRequest) -> tuple[int, int]:
        num_known = llm.get_num_tokens(0)
        is_prefill = llm.is_context_init_state
        num_computed = min(num_known - 1, llm.context_current_position) if is_prefill else num_known - 1
        has_begun = num_computed > 0 and self._manager.is_resident(llm)
        return num_known, num_computed if has_begun else 0

    def num_kept(self, _: LlmRequest) -> int | None:
        return None  # it comes back from the host whole, or not at all

    def catch_up(self, mirror: Mirror[LlmRequest], active: Sequence[LlmRequest], now_s: float) -> None:
        """Update the mirror from the active list."""
        self.passed_on = []
        ours: set[int] = set()
        for llm in active:
            if llm.py_request_id not in mirror.by_key:
                ticket = self._tickets.find(llm.py_client_id)
                if ticket is None:
                    self.passed_on.append(llm)
                    continue
                mirror.arrive(llm.py_request_id, llm, ticket, now_s)
            ours.add(llm.py_request_id)
            if not is_schedulable(llm):
                self.passed_on.append(llm)
        for request_id in [request_id for request_id in mirror.by_key if request_id not in ours]:
            mirror.depart(request_id)
        mirror.follow(now_s, (twin for twin in mirror.twins() if twin.request.row is None))
