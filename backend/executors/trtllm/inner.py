"""Inner mode: our policy inside TensorRT-LLM's step loop. The loop calls our scheduler in every iteration.

    schedule_request:  mirror.catch_up ──view──► policy.plan ──StepPlan──► manager.answer ──► mirror.adopt

Our scheduler decides which requests are in the list, in which order, which give up KV, and how large the step is.
TensorRT-LLM's own scheduler still allocates and checks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from backend.core.clock import Clock
from backend.core.plan import StepPlan
from backend.engine.stats import SchedulerStats
from backend.executors.foreign.mirror import Mirror, Scheduled, Twin
from backend.executors.foreign.pilot import EngineLimits, Pilot, by_loss, whole_victims
from backend.executors.trtllm.active import ActiveRequests
from backend.executors.trtllm.decision import Decision, ManagerAdapter, Share, is_started
from backend.executors.trtllm.surface import InnerScheduler, LlmRequest, SchedulerOutput
from backend.executors.trtllm.tickets import Tickets
from backend.policy.settings import SchedulerSettings
from backend.policy.view import Policy, SchedulerView

logger = logging.getLogger(__name__)


class BrosRequestScheduler:
    """Replaces TensorRT-LLM's `RequestScheduler`, and delegates all other attributes to it.

    A scheduler that raises ends TensorRT-LLM's loop and every request in it. So our own error is logged and kept in
    `error`. From then on TensorRT-LLM schedules by itself, and `honours_plans` is false.
    """

    def __init__(
        self,
        inner: InnerScheduler,
        manager: ManagerAdapter,
        tickets: Tickets,
        settings: SchedulerSettings,
        clock: Clock,
        max_seq_len: int,
        has_overlap: bool,
    ) -> None:
        max_tokens, max_seqs = manager.max_step()
        limits = EngineLimits(max_tokens, max_seqs, max_seq_len, manager.has_chunked_prefill, has_overlap)
        self.error: Exception | None = None
        self.active = ActiveRequests(manager, tickets)
        self._pilot = Pilot(self.active, limits, settings, clock)
        self._inner = inner
        self._manager = manager
        self._tickets = tickets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # can_schedule, scheduling_state_range and whatever later versions ask

    @property
    def policy(self) -> Policy:
        return self._pilot.policy

    @property
    def mirror(self) -> Mirror[LlmRequest]:
        return self._pilot.mirror

    @property
    def view(self) -> SchedulerView:
        return self._pilot.view

    @property
    def honours_plans(self) -> bool:
        return self.error is None

    def schedule_request(
        self, active_requests: Sequence[LlmRequest], inflight_request_ids: set[int]
    ) -> SchedulerOutput:
        """Schedule one iteration. TensorRT-LLM's loop calls it."""
        if self.error is None:
            try:
                plan = self._pilot.plan(lambda now_s: self.active.catch_up(self.mirror, active_requests, now_s))
                decision = self._decide(plan, inflight_request_ids)
            except Exception as error:
                self._give_up(error)
        if self.error is not None:
            return self._inner.schedule_request(active_requests, inflight_request_ids)
        output = self._manager.answer(decision, inflight_request_ids)
        try:
            self._pilot.adopt(_scheduled(output), plan.budget_s)
        except Exception as error:
            self._give_up(error)
        return output

    async def note_answer(self) -> None:
        """Do nothing: the step loop itself reports here."""

    def stats(self) -> SchedulerStats:
        """Return a snapshot. Any thread may call it."""
        return self._pilot.stats(is_at_rest=self._tickets.is_empty)

    def _decide(self, plan: StepPlan, inflight_request_ids: set[int]) -> Decision:
        """Translate the plan to TensorRT-LLM's requests. A request in flight is neither a victim nor withheld."""
        planned = plan.num_new_tokens
        shares = [_share(self.mirror.twin(request), num_tokens) for request, num_tokens in planned.items()]
        movable = {
            twin.request: twin
            for twin in self.mirror.twins()
            if is_started(twin.handle)
            and twin.handle.request_id not in inflight_request_ids
            and twin.request not in planned
        }
        victims = [movable.pop(request) for request in whole_victims(plan.reclaims) if request in movable]
        withheld = [twin.handle for twin in by_loss(movable.values())]
        return Decision(self.active.passed_on, shares, [twin.handle for twin in victims], withheld)

    def _give_up(self, error: Exception) -> None:
        logger.exception("our scheduler failed; TensorRT-LLM schedules by itself from here on")
        self.error = error
        self._manager.release()


def _scheduled(output: SchedulerOutput) -> list[Scheduled]:
    chunks = [Scheduled(llm.py_request_id, _chunk_size(llm)) for llm in output.context_requests]
    return chunks + [Scheduled(llm.py_request_id, 1) for llm in output.generation_requests]


def _share(twin: Twin[LlmRequest], num_tokens: int) -> Share:
    request = twin.request
    return Share(twin.handle, num_tokens, num_tokens >= request.num_uncomputed, request.is_rt)


def _chunk_size(llm: LlmRequest) -> int:
    """Return how many tokens of a prompt a step computes."""
    remaining = llm.prompt_len - llm.context_current_position
    return min(remaining, llm.context_chunk_size) if llm.context_chunk_size else remaining
