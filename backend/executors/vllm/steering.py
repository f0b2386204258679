"""Steering: one step of vLLM's scheduler, arranged so that it does what our policy planned.

    plan ──► caps: tokens that each request may get     victims: preempted by vLLM, before it schedules
             running: the planned first, who is withheld last, the first to lose its KV at the very end
             waiting: only those planned, in the plan's order
    vLLM's own schedule() ──► what it made of it is adopted

vLLM allocates, looks prefixes up, checks and preempts further where its own count says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backend.core.clock import Clock
from backend.core.plan import StepPlan
from backend.core.request import Request
from backend.engine.stats import SchedulerStats
from backend.executors.foreign.mirror import Scheduled, Twin
from backend.executors.foreign.pilot import EngineLimits, Pilot, by_loss, whole_victims
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.books import Books
from backend.executors.vllm.surface import RequestQueue, SchedulerOutput, VllmRequest, VllmScheduler
from backend.executors.vllm.waiting import WaitingRequests
from backend.policy.settings import SchedulerSettings
from backend.policy.state.table_loops import Rows

logger = logging.getLogger(__name__)

_WHOLE = 1 << 40  # tokens: no cap
_VllmTwin = Twin[VllmRequest]


class Steering:
    """Our side of `BrosScheduler`. An error of ours is logged and kept in `error`; from then on vLLM schedules by
    itself: `honours_plans` turns false."""

    def __init__(
        self, scheduler: VllmScheduler, tickets: dict[str, Ticket], settings: SchedulerSettings, clock: Clock
    ) -> None:
        limits = EngineLimits(
            max_tokens=scheduler.max_num_scheduled_tokens,
            max_seqs=scheduler.max_num_running_reqs,
            max_seq_len=scheduler.max_model_len,
            has_chunked_prefill=bool(scheduler.scheduler_config.enable_chunked_prefill),
            has_overlap=scheduler.vllm_config.max_concurrent_batches > 1,
        )
        self.error: Exception | None = None
        self.was_idle = False  # the last step ran nothing
        self.pilot: Pilot[VllmRequest] = Pilot(Books(scheduler), limits, settings, clock)
        self._scheduler = scheduler
        self._tickets = tickets
        self._came: list[VllmRequest] = []
        self._gone: list[str] = []
        self._caps: dict[str, int] | None = None  # while a step is scheduled
        self._are_bound = True  # the caps
        self._decodes: Mapping[str, int] | None = None  # that the plan has, if it has nothing else
        self._everybody: tuple[object, list[VllmRequest], Mapping[str, int]] = None, [], {}  # who ran last, all ours
        self._set_aside: RequestQueue | None = None  # while a step is scheduled: all who wait
        self._newcomers: list[VllmRequest] = []  # of this step
        self._is_stalled = False
        scheduler.waiting = WaitingRequests(scheduler.waiting)

    @property
    def honours_plans(self) -> bool:
        return self.error is None

    def note_arrival(self, request: VllmRequest) -> None:
        """Note that vLLM has taken a request in."""
        self._came.append(request)

    def note_end(self, request: VllmRequest) -> None:
        """Note that vLLM has let go of a request."""
        self._gone.append(request.request_id)

    def cap(self, request: VllmRequest, num_tokens: int) -> int:
        """Return how many of `num_tokens` that vLLM would compute of a request it may."""
        return num_tokens if self._caps is None else min(num_tokens, self._caps.get(request.request_id, 0))

    def schedule(self, own: Callable[[], SchedulerOutput]) -> SchedulerOutput:
        """Schedule one step by `own`, vLLM's way to do so."""
        plan: StepPlan | None = None
        if self.error is None:
            try:
                plan = self.pilot.plan(self._catch_up)
                self._arrange(plan)
            except Exception as error:
                self._give_up(error)
        try:
            output = own()
        finally:
            self._restore_queues()
        if plan is not None and self.error is None:
            try:
                self._adopt(plan, output)
            except Exception as error:
                self._give_up(error)
        self.was_idle = not output.num_scheduled_tokens
        return output

    def come_to_rest(self) -> None:
        """Let go of requests that ended after the last step."""
        if self.error is None:
            self._settle_ends()

    def stats(self) -> SchedulerStats:
        """Return a snapshot; any thread may ask."""
        return self.pilot.stats(is_at_rest=not self._tickets)

    def _catch_up(self, now_s: float) -> None:
        for request in self._came:
            if (ticket := self._tickets.get(request.request_id)) is not None:
                self.pilot.mirror.arrive(request.request_id, request, ticket, now_s)
        self._came.clear()
        if self._gone:
            self._settle_ends()
        self.pilot.mirror.follow(now_s)

    def _settle_ends(self) -> None:
        gone, self._gone = self._gone, []
        for request_id in gone:
            if request_id in self.pilot.mirror.by_key:
                self.pilot.mirror.depart(request_id)

    # Arranging

    def _arrange(self, plan: StepPlan) -> None:
        """Bring vLLM's queues into the order of the plan, and preempt who gives way."""
        scheduler, mirror = self._scheduler, self.pilot.mirror
        if self._runs_all(plan):
            self._decodes = self._everybody[-1]
            self._bind_caps(do_bind=False)
            self._newcomers = []
            if len(scheduler.waiting):
                self._set_aside, scheduler.waiting = scheduler.waiting, WaitingRequests()
            return
        not_ours, idle = self._split_running()
        caps: dict[str, int] = {}
        running, newcomers = [], []
        for request, num_tokens in zip(plan.requests, plan.counts, strict=True):
            if (twin := idle.pop(request, None)) is not None:
                running.append(twin.handle)
            else:
                newcomers.append(twin := mirror.twin(request))
            caps[twin.handle.request_id] = num_tokens
        waiting: RequestQueue = scheduler.waiting
        newcomers = [twin for twin in newcomers if twin.handle in waiting]
        held = by_loss(idle.values())
        gone = {twin.request for twin in self._victims(plan, held, newcomers) if self._preempt(twin)}
        withheld = [twin.handle for twin in held if twin.request not in gone]
        is_plain = not (newcomers or plan.restores or plan.reclaims or gone) and set(caps.values()) == {1}
        self._decodes = dict(caps) if is_plain else None
        caps.update((request.request_id, _WHOLE) for request in not_ours)
        for (
            request
        ) in scheduler.kv_holding_waiting:  # for what a connector brings; vLLM asks for them first, one by one
            least = 1 if request.request_id in mirror.by_key else _WHOLE  # 0 would keep the newcomers out as well
            caps[request.request_id] = max(least, caps.get(request.request_id, 0))
        self._caps = caps
        self._bind_caps(do_bind=True)
        scheduler.running = [*not_ours, *running, *reversed(withheld)]
        self._newcomers = self._with_batch_slots(newcomers)
        self._set_aside, scheduler.waiting = waiting, WaitingRequests(self._newcomers)

    def _bind_caps(self, do_bind: bool) -> None:
        if do_bind is not self._are_bound:
            self._scheduler.bind_caps(do_bind)
            self._are_bound = do_bind

    def _runs_all(self, plan: StepPlan) -> bool:
        """Whether the step is one token of everybody who runs, and has room for it: vLLM needs no arranging then."""
        scheduler, decodes = self._scheduler, self.pilot.decodes(plan)
        return (
            decodes is not None
            and len(decodes.rows) == len(self.pilot.mirror.started.rows) == len(scheduler.running)
            and not scheduler.kv_holding_waiting
            and (decodes.is_again or self._has_room_for_each(decodes.rows))
            and self._all_are_ours(scheduler.running)
        )

    def _has_room_for_each(self, rows: Rows) -> bool:
        num_free: int = self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return num_free >= self.pilot.mirror.kv.most_new_blocks(rows)

    def _all_are_ours(self, running: list[VllmRequest]) -> bool:
        """Whether we know all of `running`: looked up only where it or our books are not as they were."""
        started, by_key = self.pilot.mirror.started, self.pilot.mirror.by_key
        if self._everybody[0] is started and self._everybody[1] == running:
            return True
        if not all(request.request_id in by_key for request in running):
            return False
        self._everybody = started, running.copy(), {request.request_id: 1 for request in running}
        return True

    def _split_running(self) -> tuple[list[VllmRequest], dict[Request, _VllmTwin]]:
        """Return who is running and not ours, and who is."""
        by_key, not_ours, ours = self.pilot.mirror.by_key, [], {}
        for request in self._scheduler.running:
            if (twin := by_key.get(request.request_id)) is None:
                not_ours.append(request)
            else:
                ours[twin.request] = twin
        return not_ours, ours

    def _victims(self, plan: StepPlan, idle: Sequence[_VllmTwin], newcomers: Sequence[_VllmTwin]) -> list[_VllmTwin]:
        """Return who of the `idle` gives way: to what the plan takes, or to real-time requests that find no batch slot.
        Where a step could run nothing, one more gives way, so that it runs something."""
        wanted = set(whole_victims(plan.reclaims))
        victims = [twin for twin in idle if twin.request in wanted]
        others = [twin for twin in idle if twin.request not in wanted]
        num_rt = sum(twin.request.is_rt for twin in newcomers)
        num_missing = num_rt - self._num_free_batch_slots() - len(victims)
        return victims + others[: max(num_missing, int(self._is_stalled))]

    def _num_free_batch_slots(self) -> int:
        return self._scheduler.max_num_active_reqs - len(self._scheduler.running)

    def _with_batch_slots(self, newcomers: Sequence[_VllmTwin]) -> list[VllmRequest]:
        """Return the newcomers there are batch slots for: best-effort ones give way."""
        num_free = self._num_free_batch_slots()
        by_class = sorted(newcomers, key=lambda twin: not twin.request.is_rt)[: max(0, num_free)]
        allowed = {twin.request for twin in by_class}
        return [twin.handle for twin in newcomers if twin.request in allowed]

    def _preempt(self, victim: _VllmTwin) -> bool:
        """Let vLLM take a request's KV and put it back to those that wait; False where it cannot be freed now."""
        scheduler, request = self._scheduler, victim.handle
        if not scheduler._request_blocks_can_be_freed(request):
            return False
        scheduler.running.remove(request)
        scheduler._preempt_request(request, time.monotonic())
        return True

    def _restore_queues(self) -> None:
        """Put all who wait together again."""
        self._caps = None
        if self._set_aside is None:
            return
        scheduler, waiting = self._scheduler, self._set_aside
        self._set_aside = None
        left: RequestQueue = scheduler.waiting
        for request in self._newcomers:
            if request not in left:
                waiting.remove_request(request)
        for request in left:
            if request not in waiting:  # preempted by vLLM in this step
                waiting.prepend_request(request)
        scheduler.waiting = waiting

    def _adopt(self, plan: StepPlan, output: SchedulerOutput) -> None:
        """Note what vLLM made of the plan. It has counted the step's tokens as computed already."""
        if output.num_scheduled_tokens == self._decodes:  # as planned, and no more: nearly all steps
            self._is_stalled = False
            if self.pilot.adopt_decodes(plan):
                return
        requests = self._scheduler.requests
        self.pilot.adopt(
            (
                Scheduled(request_id, num_tokens, requests[request_id].num_computed_tokens - num_tokens)
                for request_id, num_tokens in output.num_scheduled_tokens.items()
            ),
            plan.budget_s,
        )
        is_loading = bool(self._scheduler.kv_holding_waiting)
        self._is_stalled = bool(plan.requests) and not output.num_scheduled_tokens and not is_loading

    def _give_up(self, error: Exception) -> None:
        logger.exception("our scheduler failed; vLLM schedules by itself from here on: %s", error)
        self._restore_queues()
        self.error = error
        self._scheduler.fall_back()


def steering_of(scheduler: Any) -> Steering:
    """Return the steering of a `BrosScheduler`, which must have one."""
    steering: Steering | None = scheduler.steering
    assert steering is not None, "a scheduler without its steering"
    return steering
