"""The mirror: TensorRT-LLM's active requests and KV pool, retold as the state that a policy reads.

TensorRT-LLM decides what really happens, so nothing here is assumed from a plan: before each step `catch_up` reads
where every request stands, and after it `adopt` notes what TensorRT-LLM scheduled. KV is counted in whole blocks by our
own manager (`Layout.WHOLE_BLOCK`). What TensorRT-LLM uses beyond that count (blocks of requests that are not ours,
cached prefixes it cannot drop) is taken out of every budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backend.core.plan import PreemptionKind
from backend.core.request import PriorityClass, Request, RequestState
from backend.executors.trtllm.decision import ManagerAdapter, is_schedulable
from backend.executors.trtllm.surface import LlmRequest
from backend.executors.trtllm.tickets import Ticket, Tickets
from backend.policy.packing import side_of
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.objectives import is_hopeless
from backend.policy.state.request_table import RequestTable
from backend.policy.state.waiting_queue import WaitingQueue
from backend.policy.view import Traffic
from kv.budget import KVBudget
from kv.manager import KVCacheManager
from kv.types import KVConfig, KVUsage, Layout, Row, Side

_TOKEN = 0  # stands for every output token: a policy counts tokens and reads none


@dataclass(slots=True, eq=False)
class Twin:
    """Our copy of a request inside TensorRT-LLM. `llm` is the one there, `request` what the policy sees, `num_reached`
    the most positions that were ever computed."""

    llm: LlmRequest
    ticket: Ticket
    request: Request
    num_reached: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What `catch_up` found: the real-time tokens that came, each as (its deadline, whether it came in time)."""

    rt_deadlines_s: Sequence[float] = ()
    has_continued: bool = False  # a request of the step before is still there, so no idle time lies between


@dataclass(slots=True, eq=False)
class Queues:
    """The waiting requests as a policy sees them."""

    rt: WaitingQueue
    be: WaitingQueue
    be_deadlines: WaitingQueue

    def push(self, request: Request) -> None:
        """Add a request that has not run yet."""
        (self.rt if request.is_rt else self.be).push(request)
        if not request.is_rt and request.deadline_s is not None:
            self.be_deadlines.push(request)

    def note_left(self, request: Request) -> None:
        """Count a request out, which waits no longer."""
        (self.rt if request.is_rt else self.be).note_left(request)
        if not request.is_rt and request.deadline_s is not None:
            self.be_deadlines.note_left(request)


@dataclass(frozen=True, slots=True)
class Adopted:
    """A request of which TensorRT-LLM runs `num_tokens` in a step, after `start` computed ones, `num_restored` of them
    from the host."""

    request: Request
    num_tokens: int
    start: int
    num_restored: int


class Mirror:
    """Requests by TensorRT-LLM's id, and the KV blocks they hold. Lives on the thread of TensorRT-LLM's step loop."""

    def __init__(
        self, manager: ManagerAdapter, queues: Queues, tickets: Tickets, max_seq_len: int, latency: LatencyModel
    ) -> None:
        size = manager.pool_size()
        self.table = RequestTable()
        self.traffic = Traffic()
        self.queues = queues
        self.passed_on: list[LlmRequest] = []  # active, but not ours or not schedulable now
        self._manager = manager
        self._tickets = tickets
        self._latency = latency
        self._twins: dict[int, Twin] = {}
        self._kv = KVCacheManager(
            KVConfig(
                num_blocks=size.num_blocks,
                block_size=size.block_size,
                max_seq_len=max_seq_len,
                num_host_slots=size.num_host_blocks * size.block_size,
                layout=Layout.WHOLE_BLOCK,
            )
        )
        self.num_foreign_blocks = 0  # that TensorRT-LLM uses beyond what we count
        self.preemptions: Counter[tuple[PriorityClass, PreemptionKind]] = Counter()
        self.total_restored = 0  # tokens that came back from the tier below the GPU, as far as we can tell
        self.total_recomputed = 0
        self._by_request: dict[Request, Twin] = {}

    # What a policy asks of the KV (backend.policy.view.KVReader)

    def budget(self) -> KVBudget:
        """Return a budget without the blocks that TensorRT-LLM uses for what is not ours."""
        budget = self._kv.budget()
        max_slots = self._kv.config.max_seq_len // self._kv.config.block_size * self._kv.config.block_size
        missing = self.num_foreign_blocks * self._kv.config.block_size
        while missing > 0 and budget.try_grow(None, Side.HEAD, min(missing, max_slots)):
            missing -= max_slots
        return budget

    def num_restorable(self, row: Row) -> int:
        return self._kv.num_restorable(row)

    def usage(self) -> KVUsage:
        return self._kv.usage()

    @property
    def num_borrowed_cached(self) -> int:
        """Always 0, like the next: no row of the mirror is cached."""
        return self._kv.num_borrowed_cached

    @property
    def num_evicted_slots(self) -> int:
        return self._kv.num_evicted_slots

    # Keeping up with TensorRT-LLM

    def twin(self, request: Request) -> Twin:
        """Return the twin that a policy's `request` belongs to."""
        return self._by_request[request]

    def twins(self) -> Iterable[Twin]:
        """Return all twins, in order of arrival here."""
        return self._twins.values()

    def catch_up(self, active: Sequence[LlmRequest], now_s: float, last_step: Iterable[Request]) -> Progress:
        """Read where every active request stands; note who came, who went, and the tokens that came since."""
        self._kv.begin_step()
        self.passed_on = []
        ours: dict[int, LlmRequest] = {}
        for llm in active:
            if llm.py_request_id not in self._twins:
                ticket = self._tickets.find(llm.py_client_id)
                if ticket is None:
                    self.passed_on.append(llm)
                    continue
                self._arrive(llm, ticket, now_s)
            ours[llm.py_request_id] = llm
            if not is_schedulable(llm):
                self.passed_on.append(llm)
        for request_id in [request_id for request_id in self._twins if request_id not in ours]:
            self._depart(self._twins.pop(request_id))
        deadlines_s = self._follow(now_s)
        self._count_foreign_blocks()
        return Progress(deadlines_s, has_continued=any(request in self._by_request for request in last_step))

    def adopt(self, scheduled: Sequence[tuple[LlmRequest, int]], now_s: float) -> list[Adopted]:
        """Note how many tokens of each request TensorRT-LLM runs in this step; leave out requests that are not ours."""
        ours = [(twin, num_tokens) for llm, num_tokens in scheduled if (twin := self._twins.get(llm.py_request_id))]
        decodes: list[Request] = []
        adopted = [self._adopt(twin, num_tokens, now_s, decodes) for twin, num_tokens in ours]
        if decodes and not self._kv.grow_each_by_one([_row(request) for request in decodes]):
            for request in decodes:
                self._grow(request, 1)
        return adopted

    def check_invariants(self) -> None:
        """Assert what must hold between two steps; O(slots)."""
        self._kv.check_invariants()
        assert len(self._by_request) == len(self._twins)
        held = sum(self._num_held(twin.request) for twin in self._twins.values() if twin.request.row is not None)
        usage = self._kv.usage()
        assert held == usage.num_head_slots + usage.num_tail_slots

    def _arrive(self, llm: LlmRequest, ticket: Ticket, now_s: float) -> None:
        asked = ticket.request
        request = Request(
            request_id=asked.request_id,
            priority_class=asked.priority_class,
            prompt_token_ids=asked.prompt_token_ids,
            sampling=asked.sampling,
            arrival_s=asked.arrival_s,
            slo=asked.slo,
            deadline_s=asked.deadline_s,
            arrival_index=asked.arrival_index,
        )
        self._twins[llm.py_request_id] = self._by_request[request] = Twin(llm, ticket, request)
        self.queues.push(request)
        asked.is_hopeless = is_hopeless(request, self._latency)
        self.traffic.note_arrival(request, self._latency, now_s, self.table.rt_step_s(self._latency))

    def _depart(self, twin: Twin) -> None:
        request = twin.request
        del self._by_request[request]
        was_waiting = request.state is RequestState.WAITING
        request.state = RequestState.FINISHED
        if was_waiting:
            self.queues.note_left(request)
        if request.row is not None:
            self.traffic.note_end(request)
            self.table.leave(request.row)
            self._kv.close(Row(request.row))
            request.row = None

    def _follow(self, now_s: float) -> list[float]:
        """Bring all twins up to date; return the deadlines of the real-time tokens that came."""
        started, came = [], []
        for twin in self._twins.values():
            request, llm = twin.request, twin.llm
            num_known = llm.get_num_tokens(0)
            is_prefill = llm.is_context_init_state
            num_computed = min(num_known - 1, llm.context_current_position) if is_prefill else num_known - 1
            if request.row is None and num_computed <= 0:
                continue
            if request.row is None:
                self._enter(request)
            started.append((twin, num_computed))
            came.append((request, num_known - len(request.token_ids)))
        deadlines_s = self._emit(came, now_s)
        for twin, num_computed in started:
            self._set_computed(twin, num_computed if self._manager.is_resident(twin.llm) else 0)
        return deadlines_s

    def _emit(self, came: list[tuple[Request, int]], now_s: float) -> list[float]:
        """Count the tokens that came since the last step. They came at once, as far as can be seen from here."""
        deadlines_s: list[float] = []
        while came := [(request, num_tokens) for request, num_tokens in came if num_tokens > 0]:
            rows = np.array([_row(request) for request, _ in came], dtype=np.int64)
            deadlines_s += self.table.deadline_s[rows[self.table.is_rt[rows]]].tolist()
            self.table.emit(rows, now_s)
            for request, _ in came:
                request.token_ids.append(_TOKEN)
                request.first_token_s = now_s if request.first_token_s is None else request.first_token_s
            came = [(request, num_tokens - 1) for request, num_tokens in came]
        return deadlines_s

    def _adopt(self, twin: Twin, num_tokens: int, now_s: float, decodes: list[Request]) -> Adopted:
        """Note what runs of one request, but leave it to the caller to grow `decodes` by one, all of them at once."""
        request = twin.request
        if request.row is None:
            self._enter(request)
        if twin.ticket.first_scheduled_s is None:
            twin.ticket.first_scheduled_s = now_s
        num_restored = self._kv.num_restorable(_row(request))
        start = request.num_computed + num_restored
        end = start + num_tokens
        num_missing = end - self._num_held(request)
        if num_missing == 1 and not num_restored:
            decodes.append(request)
        else:
            self._grow(request, num_missing)
        self.total_restored += num_restored
        if request.state is RequestState.PREEMPTED:
            self.total_recomputed += max(0, min(end, twin.num_reached) - start)
        twin.num_reached = max(twin.num_reached, end)
        return Adopted(request, num_tokens, start, num_restored)

    def _set_computed(self, twin: Twin, num_computed: int) -> None:
        """Let the books say that the first `num_computed` positions have their KV on the GPU."""
        request = twin.request
        row = _row(request)
        if num_computed < request.num_computed:
            self._kv.shrink(row, num_computed, checkpoint=self._manager.keeps_kv)
            self.table.cut(row, num_computed)
            if request.state is not RequestState.PREEMPTED:
                kind = PreemptionKind.CHECKPOINT if self._kv.num_restorable(row) else PreemptionKind.RECOMPUTE
                self.preemptions[request.priority_class, kind] += 1
                twin.ticket.num_preemptions += 1
            request.state = RequestState.PREEMPTED
        num_held = self._num_held(request)
        if num_held > num_computed + 1:  # a position may be in flight
            self._kv.shrink(row, num_computed, checkpoint=False)
        self._grow(request, num_computed - num_held)
        request.num_computed = num_computed
        self.table.num_computed[row] = num_computed
        if request.state is RequestState.PREEMPTED and request.num_uncomputed == 1:
            request.state = RequestState.RUNNING
            self.table.is_preempted[row] = False

    def _enter(self, request: Request) -> None:
        """Give a request that starts to run its row."""
        request.state = RequestState.RUNNING
        self.queues.note_left(request)
        request.row = self._kv.open(side_of(request))
        self.table.enter(request, request.row, request.max_total_tokens)

    def _grow(self, request: Request, num_slots: int) -> None:
        """Count blocks in that TensorRT-LLM gave a request, as far as our count has them: where prefixes are shared it
        may give more than there are."""
        if num_slots <= 0:
            return
        row = _row(request)
        num_restorable = min(num_slots, self._kv.num_restorable(row))
        num_slots = min(num_slots, self._kv.budget().max_growth(row, side_of(request)))
        if num_restorable and num_restorable <= num_slots:
            self._kv.restore(row, num_restorable)
            num_slots -= num_restorable
        self._kv.grow(row, num_slots)

    def _num_held(self, request: Request) -> int:
        return self._kv.num_held(_row(request))

    def _count_foreign_blocks(self) -> None:
        reserved = sum(self._manager.num_reserved_blocks(twin.llm) for twin in self._twins.values())
        missing = self._kv.usage().num_free_blocks - self._manager.num_free_blocks() - reserved
        self.num_foreign_blocks = max(0, missing)


def _row(request: Request) -> Row:
    assert request.row is not None, f"request {request.request_id!r} has no row"
    return Row(request.row)
