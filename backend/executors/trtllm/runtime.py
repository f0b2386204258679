"""TensorRT-LLM's `LLM` as the engine uses it, with the options its version knows."""

from __future__ import annotations

import inspect
from typing import Any

from backend.core.errors import InvalidRequestError
from backend.executors.foreign.source import Ticket
from backend.executors.trtllm.sampling import sampling_arguments
from backend.executors.trtllm.surface import Llm, RequestOutput
from backend.executors.trtllm.tickets import Tickets

_PRIORITY_RT, _PRIORITY_BE = 1.0, 0.0  # TensorRT-LLM's range is 0 to 1; it orders its waiting queue only
_STATS_TIMEOUT_S = 1.0


class Runtime:
    """Submits requests to the LLM and closes it. In inner mode our scheduler finds the requests in `tickets`."""

    def __init__(self, llm: Llm, sampling_params: type[Any], tickets: Tickets) -> None:
        self._llm = llm
        self._sampling_params = sampling_params
        self._tickets = tickets
        self._takes_priority = takes_priority(llm)
        self._takes_salt = _takes(llm, "cache_salt")

    def submit(self, ticket: Ticket) -> RequestOutput:
        """Hand a request to TensorRT-LLM. Call it on a running event loop: the answer is bound to that loop.

        Raises InvalidRequestError for a cache salt that this version would not heed.
        """
        request = ticket.request
        options: dict[str, object] = {"streaming": True}
        if self._takes_priority:
            options["priority"] = _PRIORITY_RT if request.is_rt else _PRIORITY_BE
        if request.cache_salt:
            if not self._takes_salt:
                raise InvalidRequestError("cache_salt: this TensorRT-LLM keeps no requests apart by it")
            options["cache_salt"] = request.cache_salt
        sampling_params = self._sampling_params(**sampling_arguments(request.sampling))
        prompt = list(request.prompt_token_ids)
        return self._tickets.submit(ticket, lambda: self._llm.generate_async(prompt, sampling_params, **options))

    def forget(self, output: RequestOutput) -> None:
        """Drop the ticket of a request that TensorRT-LLM has released."""
        self._tickets.forget(output)

    def is_shut_down(self) -> bool:
        """Return whether TensorRT-LLM's executor has ended. False where this version cannot say."""
        is_shutdown = getattr(self._llm._executor, "is_shutdown", None)
        return is_shutdown is not None and bool(is_shutdown())

    async def pool_size(self) -> tuple[int, int] | None:
        """Return the KV pool as (blocks, tokens per block), or None while TensorRT-LLM has no statistics."""
        async for statistics in self._llm.get_stats_async(timeout=_STATS_TIMEOUT_S):
            if kv := statistics.get("kvCacheStats"):
                return kv["maxNumBlocks"], kv["tokensPerBlock"]
        return None

    def close(self) -> None:
        """Shut TensorRT-LLM down."""
        self._llm.shutdown()


def takes_priority(llm: Any) -> bool:
    """Return whether `generate_async` of this LLM (object or class) has request priorities (from 1.3.0rc10 on)."""
    return _takes(llm, "priority")


def _takes(llm: Any, option: str) -> bool:
    return option in inspect.signature(llm.generate_async).parameters
