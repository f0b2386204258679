"""vLLM's engine as ours uses it: requests in, steps, what came of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from backend.core.request import RequestId
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.sampling import sampling_arguments
from backend.executors.vllm.surface import LlmEngine, RequestOutput

_PRIORITY_RT, _PRIORITY_BE = 0, 1  # vLLM: the lower, the sooner; counts only after an error of ours


class VllmRuntime:
    """Submits requests and takes steps. `tickets` is where the scheduler looks them up, by vLLM's own ids."""

    def __init__(
        self, llm: LlmEngine, make_params: Any, tickets: dict[str, Ticket], eos_token_ids: Collection[int]
    ) -> None:
        self.llm = llm
        self._make_params = make_params
        self.tickets = tickets
        self._eos_token_ids = eos_token_ids
        self._inside: dict[RequestId, str] = {}  # our id -> vLLM's

    def submit(self, ticket: Ticket) -> None:
        """Hand a request to vLLM. It is scheduled by this thread, so not before its ticket is there."""
        request = ticket.request
        params = self._make_params(sampling_arguments(request.sampling, self._eos_token_ids))
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
        if request.cache_salt:
            prompt["cache_salt"] = request.cache_salt
        priority = _PRIORITY_RT if request.is_rt else _PRIORITY_BE
        inner_id = self.llm.add_request(request.request_id, prompt, params, priority=priority)
        self.tickets[inner_id] = ticket
        self._inside[request.request_id] = inner_id

    def abort(self, request_id: RequestId) -> None:
        """Take a request out of vLLM."""
        self.llm.abort_request([request_id])
        self.forget(request_id)

    def forget(self, request_id: RequestId) -> None:
        """Drop the ticket of a request that vLLM has let go of."""
        del self.tickets[self._inside.pop(request_id)]

    def step(self) -> list[RequestOutput]:
        """Take one step of vLLM."""
        return list(self.llm.step())

    def drop_prefixes(self) -> None:
        """Empty the prefix cache; nobody may be inside."""
        self.llm.reset_prefix_cache()

    def close(self) -> None:
        """Shut vLLM's workers down."""
        core: Any = self.llm
        core.engine_core.shutdown()
