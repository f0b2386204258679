"""Inner mode: our policy inside TensorRT-LLM's step loop, as the scheduler that the loop asks in every iteration.

    schedule_request:  mirror.catch_up ──view──► policy.plan ──StepPlan──► manager.answer ──► mirror.adopt

It delegates to TensorRT-LLM's own scheduler, which keeps allocating and checking: ours only decides who is in the list,
in which order, who gives up KV, and how large the step may be.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from backend.core.clock import Clock
from backend.core.plan import Reclaim, StepPlan
from backend.core.request import PriorityClass, Request
from backend.engine.feedback import Feedback, MovedTokens
from backend.executors.trtllm.decision import Decision, ManagerAdapter, Share, is_started
from backend.executors.trtllm.mirror import Adopted, Mirror, Progress, Queues, Twin
from backend.executors.trtllm.surface import InnerScheduler, LlmRequest, SchedulerOutput
from backend.executors.trtllm.tickets import Tickets
from backend.policy.registry import POLICIES
from backend.policy.settings import SchedulerSettings
from backend.policy.state.latency_model import PRIOR, LatencyModel, StepFeatures
from backend.policy.state.request_table import first_deadline_s
from backend.policy.state.stats import ClassCounts, SchedulerStats
from backend.policy.state.waiting_queue import WaitingQueue
from backend.policy.view import SchedulerView, StepLimits, StepRecord
from kv.types import KVUsage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that TensorRT-LLM runs, as it was scheduled."""

    start_s: float
    predicted_s: float
    budget_s: float
    requests: Sequence[Request]
    features: StepFeatures
    num_rt_tokens: int
    num_be_tokens: int


class BrosRequestScheduler:
    """Stands where TensorRT-LLM's `RequestScheduler` stood; what it does not know itself, it asks that one.

    A scheduler that raises ends TensorRT-LLM's loop and every request in it. So an error of ours is logged and kept in
    `error`, and from then on TensorRT-LLM schedules by itself: `honours_plans` turns false.
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
        size, (max_tokens, max_seqs) = manager.pool_size(), manager.max_step()
        settings = replace(settings, chunked_prefill=settings.chunked_prefill and manager.has_chunked_prefill)
        limits = StepLimits(
            max_tokens=min(max_tokens, settings.max_tokens_per_step or max_tokens),
            max_seqs=min(max_seqs, settings.max_seqs_per_step or max_seqs),
            max_seq_len=max_seq_len,
            num_slots=size.num_blocks * size.block_size,
            block_size=size.block_size,
        )
        self.error: Exception | None = None
        self.policy = POLICIES[settings.policy].make(settings, limits)
        order = self.policy.order
        queues = Queues(WaitingQueue(order), WaitingQueue(order), WaitingQueue(first_deadline_s))
        latency = LatencyModel(
            settings.latency_coefficients or PRIOR,
            settings.latency_forgetting,
            is_fitted=settings.latency_coefficients is not None,
        )
        self.mirror = Mirror(manager, queues, tickets, max_seq_len, latency)
        self.view = SchedulerView(
            table=self.mirror.table,
            rt_waiting=queues.rt,
            be_waiting=queues.be,
            be_deadlines=queues.be_deadlines,
            kv=self.mirror,
            latency=latency,
            traffic=self.mirror.traffic,
            limits=limits,
            settings=settings,
        )
        self._inner = inner
        self._manager = manager
        self._tickets = tickets
        self._clock = clock
        self._steps: deque[_Step] = deque(maxlen=2 if has_overlap else 1)  # the oldest is the one that ended last
        self._last_call_s = clock.now_s()
        self._feedback = Feedback(self.policy, self.view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # can_schedule, scheduling_state_range and whatever later versions ask

    @property
    def honours_plans(self) -> bool:
        return self.error is None

    def schedule_request(
        self, active_requests: Sequence[LlmRequest], inflight_request_ids: set[int]
    ) -> SchedulerOutput:
        """Schedule one iteration; called by TensorRT-LLM's loop."""
        if self.error is None:
            try:
                now_s = self._clock.now_s()
                self._learn(self.mirror.catch_up(active_requests, now_s, self._last_requests()), now_s)
                start_s = self._start_s(now_s)
                plan = self.policy.plan(self.view, start_s)
                decision = self._decide(plan, inflight_request_ids)
            except Exception as error:
                self._give_up(error)
        if self.error is not None:
            return self._inner.schedule_request(active_requests, inflight_request_ids)
        output = self._manager.answer(decision, inflight_request_ids)
        try:
            self._adopt(output, plan.budget_s, now_s, start_s)
        except Exception as error:
            self._give_up(error)
        return output

    async def note_answer(self) -> None:
        """Nothing is learned from answers here."""

    def stats(self) -> SchedulerStats:
        """Return a snapshot; any thread may ask."""
        stats = self._feedback.stats(
            MovedTokens(
                preemptions=self.mirror.preemptions,
                copied_out=0,  # TensorRT-LLM moves pages by itself and does not say
                copied_in=self.mirror.total_restored,
                recomputed=self.mirror.total_recomputed,
            )
        )
        return _at_rest(stats, self.view.limits) if self._tickets.is_empty else stats

    # Deciding

    def _decide(self, plan: StepPlan, inflight_request_ids: set[int]) -> Decision:
        """Say the plan in terms of TensorRT-LLM's own requests, leaving out those it must not touch now."""
        planned = plan.num_new_tokens
        shares = [_share(self.mirror.twin(request), num_tokens) for request, num_tokens in planned.items()]
        movable = {
            twin.request: twin
            for twin in self.mirror.twins()
            if is_started(twin.llm) and twin.llm.request_id not in inflight_request_ids and twin.request not in planned
        }
        victims = [movable.pop(request) for request in _whole_victims(plan.reclaims) if request in movable]
        withheld = [twin for twin in movable.values() if twin.request.row is not None]
        withheld.sort(key=lambda twin: (twin.request.is_rt, -twin.request.arrival_index))
        return Decision(self.mirror.passed_on, shares, [twin.llm for twin in victims], [twin.llm for twin in withheld])

    def _give_up(self, error: Exception) -> None:
        logger.exception("our scheduler failed; TensorRT-LLM schedules by itself from here on")
        self.error = error
        self._manager.release()

    # Learning

    def _last_requests(self) -> Sequence[Request]:
        return self._steps[0].requests if len(self._steps) == self._steps.maxlen else ()

    def _start_s(self, now_s: float) -> float:
        """Return when the step to plan will start: under overlap, the one before it is still running."""
        return now_s + (self._steps[-1].predicted_s if self._steps and self._steps.maxlen == 2 else 0.0)

    def _adopt(self, output: SchedulerOutput, budget_s: float, now_s: float, start_s: float) -> None:
        """Note what TensorRT-LLM made of the decision."""
        chunks = [(llm, _chunk_size(llm)) for llm in output.context_requests]
        chunks += [(llm, 1) for llm in output.generation_requests]
        ours = self.mirror.adopt(chunks, now_s)
        self._last_call_s = now_s
        if not ours:
            self._steps.clear()
            return
        features = _features(ours)
        num_rt_tokens = sum(adopted.num_tokens for adopted in ours if adopted.request.is_rt)
        self._steps.append(
            _Step(
                start_s=start_s,
                predicted_s=self.view.latency.predict_s(features),
                budget_s=budget_s,
                requests=[adopted.request for adopted in ours],
                features=features,
                num_rt_tokens=num_rt_tokens,
                num_be_tokens=features.new_tokens - num_rt_tokens,
            )
        )

    def _learn(self, progress: Progress, now_s: float) -> None:
        """Take in the step that ended last, unless an idle time may lie between."""
        if len(self._steps) == self._steps.maxlen and progress.has_continued:
            step, duration_s = self._steps[0], max(now_s - self._last_call_s, 1e-6)
            record = StepRecord(
                duration_s=duration_s,
                predicted_s=step.predicted_s,
                num_rt_tokens=step.num_rt_tokens,
                num_be_tokens=step.num_be_tokens,
                num_seqs=len(step.requests),
                budget_s=step.budget_s,
            )
            self._feedback.learn(record, step.features)
        self._feedback.settle(now_s)


def _at_rest(stats: SchedulerStats, limits: StepLimits) -> SchedulerStats:
    """Return `stats` with nobody inside. TensorRT-LLM's loop asks no scheduler then, so the mirror still holds what the
    last step left."""
    num_blocks = limits.num_slots // limits.block_size
    usage = KVUsage(
        num_free_slots=limits.num_slots,
        num_head_slots=0,
        num_tail_slots=0,
        num_free_blocks=num_blocks,
        num_head_blocks=0,
        num_tail_blocks=0,
        num_shared_blocks=0,
        num_host_slots_used=0,
    )
    return replace(stats, requests=dict.fromkeys(PriorityClass, ClassCounts(0, 0, 0)), kv=usage)


def _features(adopted: Sequence[Adopted]) -> StepFeatures:
    chunks = [(each.start, each.num_tokens) for each in adopted if each.num_tokens > 1]
    return StepFeatures(
        new_tokens=sum(each.num_tokens for each in adopted),
        context_tokens=sum(each.start for each in adopted if each.num_tokens == 1),
        prefill_pairs=sum(num_tokens * (start + 0.5 * num_tokens) for start, num_tokens in chunks),
        copied_tokens=sum(each.num_restored for each in adopted),
        has_prefill=bool(chunks),
    )


def _whole_victims(reclaims: Sequence[Reclaim]) -> list[Request]:
    """Return who gives up its KV so that at least what the plan reclaims comes free. TensorRT-LLM takes it from a
    request whole or not at all, so fewer requests than the plan cuts may do."""
    num_missing = sum(reclaim.request.num_computed - reclaim.num_kept for reclaim in reclaims)
    victims = []
    for reclaim in reclaims:
        if num_missing > 0:
            victims.append(reclaim.request)
            num_missing -= reclaim.request.num_computed
    return victims


def _share(twin: Twin, num_tokens: int) -> Share:
    request = twin.request
    return Share(twin.llm, num_tokens, num_tokens >= request.num_uncomputed, request.is_rt)


def _chunk_size(llm: LlmRequest) -> int:
    """Return the tokens of a prompt that a step computes."""
    remaining = llm.prompt_len - llm.context_current_position
    return min(remaining, llm.context_chunk_size) if llm.context_chunk_size else remaining
