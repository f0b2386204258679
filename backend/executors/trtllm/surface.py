"""The parts of TensorRT-LLM that this adapter uses, as protocols. It relies on no others.

Names and behaviour were read in TensorRT-LLM 1.2 to main of autumn 2026 (docs/trtllm.md lists the versions). The
adapter reads attributes that only some versions have with `getattr`, at the point of use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol


class LlmRequest(Protocol):
    """A request in TensorRT-LLM's active list (a C++ object)."""

    py_request_id: int
    request_id: int
    prompt_len: int  # grows when a pause makes generated tokens part of the prompt
    context_current_position: int
    context_chunk_size: int
    is_context_init_state: bool
    is_first_context_chunk: bool
    is_generation_in_progress_state: bool  # true of GENERATION_TO_COMPLETE too
    py_client_id: int | None  # `RequestOutput.request_id` of the answer

    def get_num_tokens(self, beam: int) -> int:
        """Return the number of prompt and generated tokens of a beam, without the token of a step in flight."""
        ...


class SchedulerOutput(Protocol):
    """The named tuple that a scheduler returns. Its fields differ by version, so change them by keyword only."""

    context_requests: list[Any]
    generation_requests: list[Any]
    paused_requests: list[Any]

    @property
    def _fields(self) -> tuple[str, ...]: ...
    def _replace(self, **fields: Any) -> SchedulerOutput: ...


class InnerScheduler(Protocol):
    """TensorRT-LLM's own scheduler, to which ours delegates."""

    def schedule_request(
        self, active_requests: Sequence[LlmRequest], inflight_request_ids: set[int]
    ) -> SchedulerOutput: ...


class PyExecutor(Protocol):
    """TensorRT-LLM's step loop, in our process."""

    scheduler: InnerScheduler
    kv_cache_manager: Any
    max_num_active_requests: int


class CompletionOutput(Protocol):
    """One answer so far. `logprobs[i]` maps token ids at output position i to objects that have a `logprob`."""

    token_ids: list[int]
    logprobs: list[Mapping[int, Any]] | None
    finish_reason: str | None
    stop_reason: int | str | None


class RequestOutput(Protocol):
    """The result of `generate_async`. Iterate over it for new tokens. `abort` ends it in an iteration or two."""

    request_id: int  # the client id; the executor has an id of its own
    outputs: Sequence[CompletionOutput]
    finished: bool

    def abort(self) -> None: ...
    def __aiter__(self) -> AsyncIterator[RequestOutput]: ...


class Llm(Protocol):
    """`tensorrt_llm.LLM`."""

    _executor: Any

    def generate_async(self, inputs: list[int], sampling_params: Any, **options: Any) -> RequestOutput: ...
    def get_stats_async(self, timeout: float) -> AsyncIterator[Mapping[str, Any]]: ...
    def shutdown(self) -> None: ...


class Library(Protocol):
    """The module `tensorrt_llm`."""

    __version__: str
    LLM: Any
    SamplingParams: Any
