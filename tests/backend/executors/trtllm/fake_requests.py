"""Fakes of TensorRT-LLM's requests, scheduler outputs and answers: the fields and behaviours the adapter relies on.

Written from a reading of TensorRT-LLM's source (docs/trtllm.md lists the versions); no code of it is here.
"""

from __future__ import annotations

import asyncio
import enum
from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

# 1.2: five fields. Main of autumn 2026: encoder requests first, two more with defaults last.
Output12 = namedtuple(
    "Output12",
    "context_requests generation_requests paused_requests fitting_disagg_gen_init_requests num_fitting_requests",
)
OutputMain = namedtuple(
    "OutputMain",
    "encoder_requests context_requests generation_requests paused_requests fitting_disagg_gen_init_requests "
    "num_fitting_requests scheduled_mm_encoder_items recompute_paused_requests",
    defaults=(None, ()),
)


class State(enum.Enum):
    """`LlmRequestState`, as far as schedulers name it. Only the order of the numbers means something."""

    ENCODER_INIT = 1
    DISAGG_CONTEXT_WAIT_SCHEDULER = 7
    DISAGG_GENERATION_INIT = 8
    DISAGG_GENERATION_TRANS_IN_PROGRESS = 9
    CONTEXT_INIT = 10
    GENERATION_IN_PROGRESS = 13
    GENERATION_TO_COMPLETE = 14
    GENERATION_COMPLETE = 20
    DISAGG_CONTEXT_TRANS_IN_PROGRESS = 21
    DISAGG_CONTEXT_COMPLETE = 22


class FakeLlmRequest:
    """What `LlmRequest` shows to a scheduler, and what the executor does to it."""

    # What TensorRT-LLM's own schedulers read besides; constant without LoRA, drafts, beams, images or encoders.
    num_draft_tokens = 0
    has_draft_tokens = False
    lora_task_id = None
    py_multimodal_data = None
    py_encoder_output_ready_event = None
    encoder_output_len = None
    is_encoder_init_state = False
    is_generation_only_request = False
    sampling_config = SimpleNamespace(beam_width=1)

    def __init__(
        self, request_id: int, prompt_len: int, max_new_tokens: int, client_id: int | None = None, priority: float = 0.5
    ) -> None:
        self.request_id = self.py_request_id = request_id
        self.py_client_id = client_id
        self.priority = priority
        self.state = State.CONTEXT_INIT
        self.prompt_len = self.orig_prompt_len = prompt_len
        self.max_new_tokens = max_new_tokens
        self.context_current_position = 0
        self.context_chunk_size = 0
        self.num_tokens = prompt_len
        self.num_pauses = 0
        self.py_seq_slot: int | None = None
        self.py_batch_idx: int | None = None
        self.py_draft_tokens: list[int] = []
        self.expect_snapshot_points: list[int] = []

    def get_beam_width_by_iter(self, for_next_iteration: bool = False) -> int:
        assert not for_next_iteration
        return 1

    def get_context_remaining_length(self) -> int:
        return self.context_remaining_length

    @property
    def max_num_generated_tokens(self) -> int:
        return self.num_generated

    @property
    def state_value(self) -> int:
        return self.state.value

    @property
    def is_context_init_state(self) -> bool:
        return self.state is State.CONTEXT_INIT

    @property
    def is_generation_in_progress_state(self) -> bool:
        return self.state in (State.GENERATION_IN_PROGRESS, State.GENERATION_TO_COMPLETE)

    @property
    def is_generation_to_complete_state(self) -> bool:
        return self.state is State.GENERATION_TO_COMPLETE

    @property
    def is_first_context_chunk(self) -> bool:
        return self.context_current_position == 0

    @property
    def context_remaining_length(self) -> int:
        return self.prompt_len - self.context_current_position

    @property
    def is_last_context_chunk(self) -> bool:
        return self.context_chunk_size >= self.context_remaining_length

    @property
    def num_generated(self) -> int:
        return self.num_tokens - self.orig_prompt_len

    def get_num_tokens(self, beam: int) -> int:
        assert beam == 0
        return self.num_tokens

    def restart(self) -> None:
        """Start over, with the generated tokens as part of the prompt (`pause` and `reset_for_recompute`)."""
        self.prompt_len = self.num_tokens
        self.context_current_position = 0
        self.context_chunk_size = 0
        self.state = State.CONTEXT_INIT
        self.py_seq_slot = None
        self.num_pauses += 1


@dataclass
class Logprob:
    logprob: float


@dataclass
class FakeCompletion:
    """`CompletionOutput`."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class FakeRequestOutput:
    """`RequestOutput`: an asynchronous iterator over itself, one turn for each response of the executor."""

    def __init__(self, client_id: int, executor: Any) -> None:
        self.request_id = client_id
        self.outputs = [FakeCompletion()]
        self.finished = False
        self._executor = executor
        self._responses: asyncio.Queue[tuple[list[int], list[float], str | None, str | None]] = asyncio.Queue()

    def abort(self) -> None:
        self._executor.abort_request(self.request_id)

    def respond(
        self, token_ids: list[int], logprobs: list[float], finish_reason: str | None = None, error: str | None = None
    ) -> None:
        """Called by the executor."""
        self._responses.put_nowait((token_ids, logprobs, finish_reason, error))

    def __aiter__(self) -> FakeRequestOutput:
        return self

    async def __anext__(self) -> FakeRequestOutput:
        if self.finished:
            raise StopAsyncIteration
        token_ids, logprobs, finish_reason, error = await self._responses.get()
        if error is not None:
            self.finished = True
            raise RuntimeError(error)
        answer = self.outputs[0]
        answer.token_ids.extend(token_ids)
        answer.logprobs.extend({token_id: Logprob(value)} for token_id, value in zip(token_ids, logprobs, strict=False))
        if finish_reason is not None:
            answer.finish_reason = None if finish_reason == "none" else finish_reason
            self.finished = True
        return self
