"""The scheduler owns every request and, through the KV manager, every slot. The policy decides, the scheduler applies.

    plan (reads) → commit (moves requests and slots) → execute (elsewhere) → complete or fail (takes the result in)

All of it runs on the engine's thread, with time as an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from backend.core.errors import BrosError, InvalidRequestError
from backend.core.executor import ExecutorCapacity
from backend.core.plan import (
    FailedRequest,
    PlannedSlots,
    PreemptionKind,
    Reclaim,
    StepBatch,
    StepOutput,
    StepPlan,
    StepResult,
)
from backend.core.request import (
    FinishReason,
    PrefixSource,
    PriorityClass,
    Request,
    RequestId,
    RequestState,
    first_deadline_s,
)
from backend.engine import step_loops
from backend.engine.admission import check_admissible, is_hopeless
from backend.engine.committed_step import CommittedStep, Sampled
from backend.engine.drain import Drain
from backend.engine.feedback import Feedback, MovedTokens
from backend.engine.stats import SchedulerStats
from backend.policy.registry import POLICIES
from backend.policy.settings import SchedulerSettings
from backend.policy.state.alike import Alike
from backend.policy.state.latency_model import PRIOR, LatencyModel, StepFeatures
from backend.policy.state.request_table import RequestTable
from backend.policy.state.waiting_queue import WaitingQueue
from backend.policy.view import Policy, SchedulerView, StepLimits, StepRecord, Traffic
from kv.manager import KVCacheManager
from kv.prefixes import Prefix
from kv.types import NO_COPIES, KVConfig, Layout, Row, Side, SlotCopy

__all__ = ["Scheduler", "SchedulerStats", "make_scheduler"]

_NONE = np.empty(0, np.int64)
_SOURCES = PrefixSource.HIT, PrefixSource.MISS, PrefixSource.HOST
_MAX_KEPT_FREE = 1 / 16  # of the blocks: cached ones are evicted ahead, so that a step need not search for room
_NUM_FORESEEN = 16  # waiting requests of each class whose prefixes are evicted last
_LEAST_KEPT_FREE = 32  # blocks, for those that begin; a plan with a long prompt evicts what it needs itself


def make_scheduler(
    settings: SchedulerSettings, capacity: ExecutorCapacity, eos_token_ids: frozenset[int] = frozenset()
) -> Scheduler:
    """Build a scheduler with its KV manager, latency model and policy for an executor of `capacity`."""
    registered = POLICIES[settings.policy]
    is_plain = registered.has_plain_kv
    has_host_prefixes = settings.prefix_caching and not is_plain
    num_for_prefixes = min(settings.prefix_host_tokens, capacity.num_host_slots) if has_host_prefixes else 0
    layout = Layout.TWO_ENDED if settings.sharing and not is_plain else Layout.UNSHARED
    kv = KVCacheManager(
        KVConfig(
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_seq_len=capacity.max_seq_len,
            num_host_slots=capacity.num_host_slots - num_for_prefixes if settings.checkpoints and not is_plain else 0,
            num_host_prefix_slots=num_for_prefixes,
            layout=layout if capacity.fills_from_right else Layout.WHOLE_BLOCK,
            evicts_by_class=settings.evict_by_class,
        )
    )
    limits = StepLimits(
        max_tokens=min(capacity.max_tokens_per_step, settings.max_tokens_per_step or capacity.max_tokens_per_step),
        max_seqs=min(capacity.max_seqs_per_step, settings.max_seqs_per_step or capacity.max_seqs_per_step),
        max_seq_len=capacity.max_seq_len,
        num_slots=capacity.num_blocks * capacity.block_size,
        block_size=capacity.block_size,
    )
    guess = (*PRIOR[:4], capacity.host_copy_s_per_token or PRIOR[4], *PRIOR[5:])
    fit = settings.latency_coefficients
    latency = LatencyModel(guess if fit is None else fit, settings.latency_forgetting)
    policy = registered.make(settings, limits)
    return Scheduler(policy, kv, latency, limits, settings, eos_token_ids)


class Scheduler:
    """Queues, running requests and their KV slots; the seam between the engine and a policy."""

    def __init__(
        self,
        policy: Policy,
        kv: KVCacheManager,
        latency: LatencyModel,
        limits: StepLimits,
        settings: SchedulerSettings,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.policy = policy
        self.kv = kv
        self.view = SchedulerView(
            table=RequestTable(),
            rt_waiting=WaitingQueue(policy.order, self._look_up),
            be_waiting=WaitingQueue(policy.order, self._look_up),
            be_deadlines=WaitingQueue(first_deadline_s, self._look_up),
            kv=kv,
            latency=latency,
            traffic=Traffic(),
            limits=limits,
            settings=settings,
            be_alike=Alike(self._look_up),
        )
        self._feedback = Feedback(policy, self.view)
        self._eos_token_ids = eos_token_ids
        self._requests: dict[RequestId, Request] = {}
        self._stops: dict[Request, frozenset[int]] = {}
        self._num_stops: Counter[int] = Counter()  # requests by token that stops them
        self._step: CommittedStep | None = None
        self._planned_s = 0.0  # when the step to be committed was planned
        self._num_arrived = 0
        self._max_kept_free = int(_MAX_KEPT_FREE * limits.num_slots / limits.block_size)
        self._totals: Counter[str] = Counter()
        self._preemptions: Counter[tuple[PriorityClass, PreemptionKind]] = Counter()
        self._drains = {priority_class: Drain() for priority_class in PriorityClass}
        self._num_found = {False: [0, 0, 0], True: [0, 0, 0]}  # tokens of prompts that began, by is_rt: _SOURCES

    # Requests come and go

    def add(self, request: Request, now_s: float) -> None:
        """Queue `request`, or raise InvalidRequestError, RequestTooLargeError or OverloadedError.

        Whatever else is raised, by a policy say, leaves nothing of the request behind.
        """
        if request.request_id in self._requests:
            raise InvalidRequestError(f"request {request.request_id!r}: a request of this id is being served")
        if self.view.settings.prefix_caching:
            request.prefix = Prefix(request.token_ids, request.cache_salt)
            self._look_up(request)
        check_admissible(self.view, self.policy, request, now_s, self._drains[request.priority_class].per_s(now_s))
        stop_ids = self._stop_ids(request)
        request.arrival_index = self._num_arrived
        self._num_arrived += 1
        request.is_hopeless = is_hopeless(request, self.view.latency)
        self.view.traffic.note_arrival(request, self.view.latency, now_s, self.view.table.rt_step_s(self.view.latency))
        self._enqueue(request)
        if not request.is_rt and self.view.settings.cached_first:
            self.view.be_alike.enter(request)
        self._requests[request.request_id] = request
        self._stops[request] = stop_ids
        self._num_stops.update(stop_ids)

    def _enqueue(self, request: Request) -> None:
        """Push `request` to its queues: to all, or where one of them raises to none."""
        pushed: list[WaitingQueue] = []
        try:
            for queue in self._queues(request):
                queue.push(request)
                pushed.append(queue)
        except Exception:
            request.state = RequestState.FINISHED  # so that its entries are dead
            for queue in pushed:
                queue.note_left(request)
            raise

    def cancel(self, request_id: RequestId, now_s: float) -> StepOutput:
        """End a request in any state and free all it holds at once; an unknown or finished one is ignored."""
        return self.finish(request_id, FinishReason.CANCELLED, now_s)

    def finish(self, request_id: RequestId, reason: FinishReason, now_s: float) -> StepOutput:
        """End a request for a reason found outside, such as a stop string; unknown and finished ones are ignored."""
        del now_s
        assert self._step is None, f"request {request_id!r}: no request may end between commit and complete"
        request = self._requests.get(request_id)
        if request is None:
            return StepOutput()
        self._release({request: reason})
        return StepOutput(finished=(request,))

    # The step

    def plan(self, now_s: float) -> StepPlan:
        """Decide the next step; nothing moves. Empty only when there is nothing that could run."""
        self._planned_s = now_s
        return self.policy.plan(self.view, now_s)

    def commit(self, plan: StepPlan) -> StepBatch:
        """Apply `plan`: reclaim, restore and grow slots, move requests. Asserts that the plan fits."""
        assert self._step is None, "the last step was neither completed nor failed"
        self.kv.begin_step()
        slots = plan.slots or PlannedSlots(self.kv.budget(), _NONE, _NONE, ())
        copies_out, copies_in = self._allocate(plan, slots)
        requests = list(plan.requests)
        all_out = _joined([*copies_out, *filter(len, (self.kv.take_prefix_copies(),))])
        batch = StepBatch(requests, plan.counts, self.kv.slot_table, all_out, _joined(copies_in))
        checkpointed = [reclaim.request for reclaim, copy in zip(plan.reclaims, copies_out, strict=True) if len(copy)]
        features, num_rt_tokens = self._features(slots, len(batch.copies_out) + len(batch.copies_in))
        self._step = CommittedStep(batch, requests, slots, features, num_rt_tokens, plan, checkpointed)
        return batch

    def complete(self, batch: StepBatch, result: StepResult, now_s: float) -> StepOutput:
        """Take in what `batch` yielded: tokens, stops, freed slots; and let model and policy learn from the step."""
        step = self._take_step(batch)
        table, requests = self.view.table, step.requests
        assert len(result.token_ids) == len(requests), f"{len(result.token_ids)} results for {len(requests)} requests"
        self._learn(step, result)
        self._totals["recomputed"] += table.compute(step.slots.rows, step.slots.counts)
        for request in step.slots.newcomers:
            request.first_scheduled_s = now_s - result.duration_s
        sampled = Sampled.of(step, result)
        for request in sampled.others:
            request.num_computed = int(table.num_computed[_row(request)])
            self._lend(request, request.num_computed)
        finished = self._emit(sampled, now_s)
        failed = [FailedRequest(requests[index], error) for index, error in result.errors.items()]
        self._release({each.request: FinishReason.ERROR for each in failed})
        self._keep_free(len(requests))
        self._feedback.settle(now_s)
        return StepOutput(tokens=sampled, finished=finished, failed=failed)

    def fail(self, batch: StepBatch, error: BrosError, now_s: float) -> StepOutput:
        """End the requests of a batch whose execution failed, and free their slots.

        The batch's copies to the host do not exist, so their owners compute those positions again.
        """
        step = self._take_step(batch)
        for request in step.checkpointed:
            if request.row is not None:
                self.kv.discard_copies(Row(request.row))
        self.kv.discard_prefix_copies()
        failed = [FailedRequest(request, error) for request in step.requests]
        self._release(dict.fromkeys(step.requests, FinishReason.ERROR))
        self._feedback.settle(now_s)
        return StepOutput(failed=failed)

    def fail_all(self, error: BrosError, now_s: float) -> StepOutput:
        """End every request."""
        del now_s
        self._step = None
        requests = list(self._requests.values())
        self._release(dict.fromkeys(requests, FinishReason.ERROR))
        return StepOutput(failed=[FailedRequest(request, error) for request in requests])

    def next_event_s(self) -> float | None:
        """Return when there will be work without any new command: never, since `plan` serves whatever there is."""
        return None

    # Looking at it

    @property
    def is_idle(self) -> bool:
        """Whether no request is here."""
        return not self._requests

    def stats(self) -> SchedulerStats:
        """Return a snapshot."""
        totals = self._totals
        prefixes = {
            (PriorityClass.REAL_TIME if is_rt else PriorityClass.BEST_EFFORT, source): number
            for is_rt, found in self._num_found.items()
            for source, number in zip(_SOURCES, found, strict=True)
            if any(found) and (number or source is not PrefixSource.HOST)
        }
        return self._feedback.stats(
            MovedTokens(self._preemptions, totals["copied_out"], totals["copied_in"], totals["recomputed"], prefixes)
        )

    def check_invariants(self) -> None:
        """Assert that queues, table, requests and KV slots agree; between two steps only."""
        assert self._step is None, "invariants hold between steps"
        self.kv.check_invariants()
        table = self.view.table
        table.check_invariants()
        for queue in (self.view.rt_waiting, self.view.be_waiting, self.view.be_deadlines):
            queue.check_invariants()
        self.view.be_alike.check_invariants(len(self.view.be_waiting))
        num_waiting = len(self.view.rt_waiting) + len(self.view.be_waiting)
        assert num_waiting + len(table.rows()) == len(self._requests), (
            "a request is in neither queue nor table, or in both"
        )
        assert self._stops.keys() == set(self._requests.values()), "stop sets do not match the requests"
        for row in table.rows().tolist():
            request = table.request(row)
            assert self._requests[request.request_id] is request, f"row {row}: unknown {request.request_id!r}"
            num_held = self.kv.num_held(Row(row))
            assert num_held == request.num_computed, (
                f"request {request.request_id!r}: {num_held} slots for {request.num_computed} computed tokens"
            )
            assert self.kv.num_borrowed(Row(row)) == table.num_borrowed[row], f"{request.request_id!r}: num_borrowed"

    # Prefixes, queues and stops

    def _look_up(self, request: Request) -> None:
        """Note how many tokens of a waiting request the cache has at present."""
        if request.prefix is not None:
            request.num_computed = self.kv.find(request.prefix)

    def _queues(self, request: Request) -> list[WaitingQueue]:
        if request.is_rt:
            return [self.view.rt_waiting]
        return [self.view.be_waiting] + [self.view.be_deadlines] * (request.deadline_s is not None)

    def _note_left(self, request: Request) -> None:
        """Take `request`, which waits no more, from its queues."""
        for queue in self._queues(request):
            queue.note_left(request)
        if not request.is_rt:
            self.view.be_alike.leave(request)

    def _stop_ids(self, request: Request) -> frozenset[int]:
        stop_ids = request.sampling.stop_token_ids
        return stop_ids if request.sampling.ignore_eos else stop_ids | self._eos_token_ids

    # Moving requests and slots

    def _allocate(self, plan: StepPlan, slots: PlannedSlots) -> tuple[list[SlotCopy], list[SlotCopy]]:
        """Make the plan's slots real; return the copies out, one for each reclaim, and the copies in."""
        budget = slots.budget
        for request, row in zip(slots.newcomers, budget.opened, strict=True):
            self._start(request, row)
        checkpoints = {_row(reclaim.request) for reclaim in plan.reclaims if reclaim.checkpoint}
        restores = {_row(restore.request): restore.num_tokens for restore in plan.restores}
        prefixes = self._count_from_host(plan, slots.newcomers)
        adopted = self.kv.adopt(budget, checkpoints, restores, prefixes)
        copies_out = [adopted.copies_out[_row(reclaim.request)] for reclaim in plan.reclaims]
        for reclaim, copy in zip(plan.reclaims, copies_out, strict=True):
            self._note_loss(reclaim, copy)
        for restore in plan.restores:
            restore.request.num_computed += restore.num_tokens
            self.view.table.num_computed[_row(restore.request)] += restore.num_tokens
        return copies_out, adopted.copies_in

    def _count_from_host(self, plan: StepPlan, newcomers: Sequence[Request]) -> dict[Row, Prefix]:
        """Count the tokens of newcomers that the host has. Return the prefix of each of these."""
        prefixes = {}
        for request, num_tokens in ((each.request, each.num_tokens) for each in plan.restores):
            if request in newcomers and request.prefix is not None:
                prefixes[_row(request)] = request.prefix
                request.num_cached += num_tokens
                found = self._num_found[request.is_rt]
                found[1] -= num_tokens
                found[2] += num_tokens
        return prefixes

    def _start(self, request: Request, row: Row) -> None:
        """Move a waiting request into its first row."""
        assert request.state is RequestState.WAITING, f"request {request.request_id!r}: {request.state} without a row"
        request.row = row
        request.num_cached = request.num_computed
        if request.prefix is not None:
            found = self._num_found[request.is_rt]
            found[0] += request.num_cached
            found[1] += request.num_uncomputed
        request.first_scheduled_s = self._planned_s
        request.state = RequestState.RUNNING
        self.view.table.enter(request, row, request.max_total_tokens)
        self._drains[request.priority_class].note(self._planned_s)
        self._note_left(request)

    def _note_loss(self, reclaim: Reclaim, copy: SlotCopy) -> None:
        request = reclaim.request
        if request.state is not RequestState.PREEMPTED:
            kind = PreemptionKind.CHECKPOINT if len(copy) else PreemptionKind.RECOMPUTE
            self._preemptions[request.priority_class, kind] += 1
            request.num_preemptions += 1
        request.state = RequestState.PREEMPTED
        request.num_computed = reclaim.num_kept
        self.view.table.cut(_row(request), reclaim.num_kept)

    def _release(self, reasons: Mapping[Request, FinishReason]) -> None:
        """End requests: they leave every structure, and free their slots or leave them to the cache."""
        rows: list[Row] = []
        for request, reason in reasons.items():
            was_waiting = request.state is RequestState.WAITING
            request.state = RequestState.FINISHED
            request.finish_reason = reason
            self.view.traffic.note_end(request, has_failed=reason is FinishReason.ERROR)
            del self._requests[request.request_id]
            for token_id in self._stops.pop(request):
                self._num_stops[token_id] -= 1
                if not self._num_stops[token_id]:
                    del self._num_stops[token_id]
            if was_waiting:
                self._note_left(request)
            elif request.row is not None:
                self.view.table.leave(request.row)
                if reason is FinishReason.ERROR or request.prefix is None:
                    rows.append(Row(request.row))
                else:
                    self._leave_cached(request)
                request.row = None
        if rows:
            self.kv.close_each(rows)

    def _leave_cached(self, request: Request) -> None:
        """Close the row of a request that is over; what it computed can be borrowed until its slots are needed."""
        assert request.prefix is not None, f"request {request.request_id!r}: no prefix"
        self.kv.leave_cached(_row(request), request.prefix, request.num_computed)
        request.prefix = None

    # Taking a result in

    def _take_step(self, batch: StepBatch) -> CommittedStep:
        step = self._step
        assert step is not None, "nothing was committed"
        assert step.batch is batch, "this batch was not committed last"
        self._step = None
        return step

    def _features(self, slots: PlannedSlots, num_copied: int) -> tuple[StepFeatures, int]:
        """Return the features of a step, and how many of its new tokens are real-time."""
        table, rows = self.view.table, slots.rows
        new_tokens, num_rt, context, pairs = step_loops.features(table.num_computed, table.is_rt, rows, slots.counts)
        return StepFeatures(new_tokens, context, pairs, num_copied, has_prefill=new_tokens > len(rows)), num_rt

    def _learn(self, step: CommittedStep, result: StepResult) -> None:
        totals = self._totals
        record = StepRecord(
            duration_s=result.duration_s,
            predicted_s=step.plan.predicted_s,
            num_rt_tokens=step.num_rt_tokens,
            num_be_tokens=step.features.new_tokens - step.num_rt_tokens,
            num_seqs=len(step.requests),
            budget_s=step.plan.budget_s,
        )
        self._feedback.learn(record, step.features)
        totals["copied_out"] += len(step.batch.copies_out)
        totals["copied_in"] += len(step.batch.copies_in)

    def _emit(self, sampled: Sampled, now_s: float) -> list[Request]:
        """Append the sampled tokens to their requests; end those that are done, and return them."""
        table, rows, requests = self.view.table, sampled.rows, sampled.requests
        if not requests:
            return []
        resumed, first, full = table.emit(rows, now_s)
        for index in resumed:
            requests[index].state = RequestState.RUNNING
        for index in first:
            requests[index].first_token_s = now_s
            self._lend(requests[index], requests[index].num_prompt)
        for request, token_id in zip(requests, sampled.token_ids, strict=True):
            token_ids = request.token_ids
            request.num_computed = len(token_ids)  # it sampled, so it had computed all
            token_ids.append(token_id)
        ended = set(full).union(self._stopped(sampled))
        finished = [requests[index] for index in sorted(ended)]
        self._release({request: self._reason(request) for request in finished})
        return finished

    def _keep_free(self, num_seqs: int) -> None:
        """Evict ahead after a step of `num_seqs`. The prefixes of those that begin next go last.

        A plan promises a block to each decode, and keeps one for each in reserve. Free blocks cache nothing.
        """
        least = min(2 * num_seqs + _LEAST_KEPT_FREE, self._max_kept_free // 2)
        if self.kv.num_free_blocks < least:
            if self.view.settings.prefix_caching:
                self._keep_for_waiting()
            self.kv.keep_free(least, 2 * least)

    def _keep_for_waiting(self) -> None:
        for queue, side in ((self.view.be_waiting, Side.TAIL), (self.view.rt_waiting, Side.HEAD)):
            for request in reversed(queue.first(_NUM_FORESEEN)):
                if request.prefix is not None:
                    self.kv.keep_longer(request.prefix, side)

    def _lend(self, request: Request, num_computed: int) -> None:
        """Let others borrow the computed part of the prompt: long prompts that begin alike often overlap."""
        if request.prefix is not None:
            self.kv.lend(_row(request), request.prefix, min(num_computed, request.num_prompt))

    def _stopped(self, sampled: Sampled) -> list[int]:
        """Return the indices of the requests that sampled a stop token of theirs."""
        if self._num_stops.keys().isdisjoint(sampled.distinct_ids):
            return []
        return [index for index, request in enumerate(sampled.requests) if self._is_stopped(request)]

    def _is_stopped(self, request: Request) -> bool:
        is_allowed = request.num_output >= request.sampling.min_tokens
        return is_allowed and request.token_ids[-1] in self._stops[request]

    def _reason(self, request: Request) -> FinishReason:
        return FinishReason.STOP if self._is_stopped(request) else FinishReason.LENGTH


def _row(request: Request) -> Row:
    assert request.row is not None, f"request {request.request_id!r} has no row"
    return Row(request.row)


def _joined(copies: Sequence[SlotCopy]) -> SlotCopy:
    """Return the copies one after the other."""
    if len(copies) < 2:
        return copies[0] if copies else NO_COPIES
    return SlotCopy(
        np.concatenate([copy.device_slots for copy in copies]), np.concatenate([copy.host_slots for copy in copies])
    )
