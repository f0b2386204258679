"""The mirror: another engine's requests and KV pool, retold as the state that a policy reads.

The engine decides what really happens, so nothing here is assumed from a plan. Before each step `follow` reads where
the requests stand, and after it `adopt` notes what the engine scheduled. KV is counted in whole blocks by our own
manager (`Layout.WHOLE_BLOCK`). What the engine uses beyond that count (blocks of requests that are not ours, cached
prefixes it cannot drop) is taken out of every budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from backend.core.plan import PreemptionKind
from backend.core.request import PrefixSource, PriorityClass, Request, RequestState
from backend.engine.admission import is_hopeless
from backend.executors.foreign.source import Source, Ticket
from backend.policy.packing import side_of
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.request_table import RequestTable
from backend.policy.state.table_loops import Rows
from backend.policy.state.waiting_queue import WaitingQueue
from backend.policy.view import Traffic
from kv.budget import KVBudget
from kv.manager import KVCacheManager
from kv.prefixes import Prefix
from kv.types import KVConfig, KVUsage, Layout, Row, Side

H = TypeVar("H")  # the engine's own object for a request
Key = Hashable  # and its name for it

_TOKEN = 0  # stands for every output token: a policy counts tokens and reads none


@dataclass(slots=True, eq=False)
class Twin(Generic[H]):
    """Our copy of a request inside the engine. `handle` is the one there, `request` what the policy sees.
    `num_reached`: the most positions that were computed when KV was lost. `num_seen`: those that a step has brought it
    to since. `num_kept`: those of a victim that are still
    to be had (None: all)."""

    handle: H
    ticket: Ticket
    request: Request
    num_reached: int = 0
    num_seen: int = 0
    num_kept: int | None = None


@dataclass(frozen=True, slots=True)
class _Started(Generic[H]):
    """The twins that hold a row, by row, and what each step reads of them. Kept until one enters or leaves."""

    twins: list[Twin[H]]
    handles: list[H]
    requests: list[Request]
    rows: Rows


class Scheduled(NamedTuple):
    """A request that a step of the engine runs: its new tokens, after `start` positions that need no computing. None:
    after those computed and all that can be restored."""

    key: Key
    num_tokens: int
    start: int | None = None


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


class Adopted(NamedTuple):
    """A request of which the engine runs `num_tokens` in a step, after `start` computed ones, `num_restored` of them
    not computed by it."""

    request: Request
    num_tokens: int
    start: int
    num_restored: int


class Mirror(Generic[H]):
    """Requests by the engine's key, and the KV blocks they hold. Lives on the thread of the engine's step loop."""

    def __init__(self, source: Source[H], queues: Queues, max_seq_len: int, latency: LatencyModel) -> None:
        size = source.pool_size()
        self.table = RequestTable()
        self.traffic = Traffic()
        self.queues = queues
        self._source = source
        self._latency = latency
        self._twins: dict[Key, Twin[H]] = {}
        self.kv = KVCacheManager(
            KVConfig(
                num_blocks=size.num_blocks,
                block_size=size.block_size,
                max_seq_len=max_seq_len,
                num_host_slots=size.num_host_blocks * size.block_size,
                layout=Layout.WHOLE_BLOCK,
            )
        )
        self.num_foreign_blocks = 0  # that the engine uses beyond what we count
        self.num_own_blocks = size.num_blocks  # that are free for our requests
        self.preemptions: Counter[tuple[PriorityClass, PreemptionKind]] = Counter()
        self.prefix_tokens: Counter[tuple[PriorityClass, PrefixSource]] = Counter()  # of prompts that began
        self.total_restored = 0  # tokens that victims got back uncomputed, as far as we can tell
        self.total_recomputed = 0
        self._by_request: dict[Request, Twin[H]] = {}
        self._started: _Started[H] | None = None  # as far as it is up to date
        self._num_untold = 0  # tokens that each of them decoded, and that only the table has
        self._is_begun = False  # this step, in the KV
        self.have_all_decoded = False  # one token since the step before, all that hold a row

    # What a policy asks of the KV (backend.policy.view.KVReader)

    def budget(self) -> KVBudget:
        """Return a budget without the blocks that the engine uses for requests that are not ours."""
        budget = self.kv.budget()
        max_slots = self.kv.config.max_seq_len // self.kv.config.block_size * self.kv.config.block_size
        missing = self.num_foreign_blocks * self.kv.config.block_size
        while missing > 0 and budget.try_grow(None, Side.HEAD, min(missing, max_slots)):
            missing -= max_slots
        return budget

    def num_restorable(self, row: Row) -> int:
        num_restorable = self.kv.num_restorable(row)
        num_kept = self._by_request[self.table.request(row)].num_kept if num_restorable else None
        return num_restorable if num_kept is None else min(num_restorable, num_kept)

    def num_on_host(self, prefix: Prefix, start: int) -> int:
        """Return 0: no prefix of the mirror is on the host."""
        return self.kv.num_on_host(prefix, start)

    def usage(self) -> KVUsage:
        return self.kv.usage()

    @property
    def num_borrowed_cached(self) -> int:
        """Always 0, like the next: no row of the mirror is cached."""
        return self.kv.num_borrowed_cached

    @property
    def num_evicted_slots(self) -> int:
        return self.kv.num_evicted_slots

    # Keeping up with the engine

    def twin(self, request: Request) -> Twin[H]:
        """Return the twin that a policy's `request` belongs to."""
        return self._by_request[request]

    def twins(self) -> Collection[Twin[H]]:
        """Return all twins, in order of arrival here."""
        return self._twins.values()

    @property
    def started(self) -> _Started[H]:
        """The twins that hold a row."""
        if self._started is None:
            rows = self.table.rows()
            requests = self.table.requests_in(rows)
            twins = [self._by_request[request] for request in requests]
            self._started = _Started(twins, [twin.handle for twin in twins], requests, rows)
        return self._started

    @property
    def by_key(self) -> Mapping[Key, Twin[H]]:
        """All twins by the engine's name, in order of arrival here."""
        return self._twins

    def settle(self) -> None:
        """Begin the step in the KV, and let the requests say what the table says.

        Where all that hold a row have decoded, `follow` writes to the table only: each request that is touched costs
        time.
        """
        if not self._is_begun:
            self._is_begun = True
            self.kv.begin_step()
        num_untold, self._num_untold = self._num_untold, 0
        if num_untold:
            for request in self.started.requests:
                request.num_computed += num_untold
                request.token_ids += [_TOKEN] * num_untold

    def has_any(self, requests: Iterable[Request]) -> bool:
        """Return whether one of `requests` is still here."""
        return any(request in self._by_request for request in requests)

    def follow(self, now_s: float, newcomers: Iterable[Twin[H]] = ()) -> None:
        """Begin a step: bring those that have begun up to date, and those of `newcomers` that the engine began."""
        self._is_begun = False
        if newcomers := list(newcomers):
            stands = self._source.positions([twin.handle for twin in newcomers])
            for twin, num_computed in zip(newcomers, stands[1].tolist(), strict=True):
                if num_computed > 0:
                    self._enter(twin.request)
        self.have_all_decoded = False
        if (started := self.started).twins:
            self._follow(started, now_s)
        self._count_foreign_blocks()

    def _follow(self, started: _Started[H], now_s: float) -> None:
        """Follow requests with a row. Nearly all have decoded one token, or have not run; those take one loop."""
        table, requests, rows = self.table, started.requests, started.rows
        stands = self._source.positions(started.handles)
        decodes, others = table.follow(self.kv.held, rows, stands, now_s)
        if len(decodes) == len(requests):
            self._num_untold += 1
            self.have_all_decoded = True
            return
        self.settle()
        for request in map(requests.__getitem__, decodes.tolist()):
            request.num_computed += 1
            request.token_ids.append(_TOKEN)
        if len(others):
            came = stands[0, others] - table.num_known[rows[others]]
            news = zip(others.tolist(), came.tolist(), strict=True)
            self._emit([(requests[index], num) for index, num in news if num > 0], now_s)
            for index in others.tolist():
                self._set_computed(started.twins[index], int(stands[1, index]))

    def adopt(self, scheduled: Iterable[Scheduled], now_s: float) -> list[Adopted]:
        """Note how many tokens of each request the engine runs in this step; leave out requests that are not ours."""
        self.settle()
        decodes: list[Request] = []
        adopted: list[Adopted] = []
        for each in scheduled:
            if (twin := self._twins.get(each.key)) is None:
                continue
            request, start = twin.request, each.start
            if each.num_tokens == 1 and start == request.num_computed and request.state is RequestState.RUNNING:
                decodes.append(request)  # as nearly all are
                adopted.append(Adopted(request, 1, start, 0))
            else:
                adopted.append(self._adopt(twin, each, now_s, decodes))
        if decodes and not self.kv.grow_each_by_one([_row(request) for request in decodes]):
            for request in decodes:
                self._grow(request, 1)
        return adopted

    def check_invariants(self) -> None:
        """Assert what must hold between two steps; O(slots)."""
        self.kv.check_invariants()
        assert len(self._by_request) == len(self._twins)
        held = sum(self._num_held(twin.request) for twin in self._twins.values() if twin.request.row is not None)
        usage = self.kv.usage()
        assert held == usage.num_head_slots + usage.num_tail_slots
        for request in self.started.requests:
            num_known = len(request.token_ids) + self._num_untold
            assert num_known == self.table.num_known[_row(request)], f"request {request.request_id!r}: tokens"

    def arrive(self, key: Key, handle: H, ticket: Ticket, now_s: float) -> None:
        """Take in a request that the engine has taken in."""
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
        self._twins[key] = self._by_request[request] = Twin(handle, ticket, request)
        self.queues.push(request)
        asked.is_hopeless = is_hopeless(request, self._latency)
        self.traffic.note_arrival(request, self._latency, now_s, self.table.rt_step_s(self._latency))

    def depart(self, key: Key) -> None:
        """Let go of a request that the engine has let go of."""
        self.settle()
        request = self._twins.pop(key).request
        del self._by_request[request]
        was_waiting = request.state is RequestState.WAITING
        request.state = RequestState.FINISHED
        self.traffic.note_end(request)
        if was_waiting:
            self.queues.note_left(request)
        if request.row is not None:
            self._started = None
            self.table.leave(request.row)
            self.kv.close(Row(request.row))
            request.row = None

    def _emit(self, came: list[tuple[Request, int]], now_s: float) -> None:
        """Count the tokens that came since the last step. They came at once, as far as can be seen from here."""
        while came:
            rows = np.array([_row(request) for request, _ in came], dtype=np.int64)
            self.table.emit(rows, now_s)
            for request, _ in came:
                request.token_ids.append(_TOKEN)
            came = [(request, num_tokens - 1) for request, num_tokens in came if num_tokens > 1]

    def _adopt(self, twin: Twin[H], scheduled: Scheduled, now_s: float, decodes: list[Request]) -> Adopted:
        """Note what runs of one request, but leave it to the caller to grow `decodes` by one, all of them at once."""
        request = twin.request
        if request.row is None:
            self._enter(request)
        num_computed = request.num_computed
        if (start := scheduled.start) is None:
            start = num_computed + self.num_restorable(_row(request))
        if twin.ticket.first_scheduled_s is None:
            twin.ticket.first_scheduled_s = now_s
            if scheduled.start is not None:
                self._note_prefix(twin, start)
        num_restored = max(0, start - num_computed)
        end = start + scheduled.num_tokens
        num_missing = end - self._num_held(request)
        if num_missing == 1 and not num_restored:
            decodes.append(request)
        else:
            self._grow(request, num_missing)
        if request.state is RequestState.PREEMPTED:
            self.total_restored += num_restored
            self.total_recomputed += max(0, min(end, twin.num_reached) - start)
        twin.num_reached, twin.num_seen = max(twin.num_reached, end), end
        return Adopted(request, scheduled.num_tokens, start, num_restored)

    def _note_prefix(self, twin: Twin[H], num_cached: int) -> None:
        """Note that a request begins with `num_cached` tokens of which the engine had the KV."""
        twin.ticket.num_cached = num_cached
        if self._source.keeps_kv:
            cls, num_prompt = twin.request.priority_class, twin.request.num_prompt
            self.prefix_tokens[cls, PrefixSource.HIT] += num_cached
            self.prefix_tokens[cls, PrefixSource.MISS] += num_prompt - num_cached

    def _set_computed(self, twin: Twin[H], num_computed: int) -> None:
        """Let the books say that the first `num_computed` positions have their KV where a step reads it."""
        request = twin.request
        row = _row(request)
        if num_computed < request.num_computed:
            self._lose(twin, row, num_computed)
        if request.state is RequestState.PREEMPTED:
            self.total_restored += max(0, num_computed - max(request.num_computed, twin.num_seen))  # while it waited
            twin.num_kept = self._source.num_kept(twin.handle)
        num_held = self._num_held(request)
        if num_held > num_computed + 1:  # a position may be in flight
            self.kv.shrink(row, num_computed, checkpoint=False)
        elif num_held < num_computed:
            self._grow(request, num_computed - num_held)
        request.num_computed = num_computed
        self.table.num_computed[row] = num_computed
        if request.state is RequestState.PREEMPTED and request.num_uncomputed == 1:
            request.state = RequestState.RUNNING
            self.table.is_preempted[row] = False

    def _lose(self, twin: Twin[H], row: Row, num_computed: int) -> None:
        """Note that the engine took KV from a request, which keeps `num_computed` positions."""
        request = twin.request
        twin.num_reached, twin.num_seen = max(twin.num_reached, self._num_held(request)), num_computed
        self.kv.shrink(row, num_computed, checkpoint=self._source.keeps_kv)
        self.table.cut(row, num_computed)
        if request.state is not RequestState.PREEMPTED:
            kind = PreemptionKind.CHECKPOINT if self.kv.num_restorable(row) else PreemptionKind.RECOMPUTE
            self.preemptions[request.priority_class, kind] += 1
            twin.ticket.num_preemptions += 1
        request.state = RequestState.PREEMPTED

    def _enter(self, request: Request) -> None:
        """Give a request that starts to run its row."""
        self.settle()
        self._started = None
        request.state = RequestState.RUNNING
        self.queues.note_left(request)
        request.row = self.kv.open(side_of(request))
        self.table.enter(request, request.row, request.max_total_tokens)

    def _grow(self, request: Request, num_slots: int) -> None:
        """Count blocks in that the engine gave a request, as far as our count has them. Where prefixes are shared it
        may give more than there are."""
        if num_slots <= 0:
            return
        row = _row(request)
        num_restorable = min(num_slots, self.kv.num_restorable(row))
        num_slots = min(num_slots, self.kv.budget().max_growth(row, side_of(request)))
        if num_restorable and num_restorable <= num_slots:
            self.kv.restore(row, num_restorable)
            num_slots -= num_restorable
        self.kv.grow(row, num_slots)

    def _num_held(self, request: Request) -> int:
        return self.kv.num_held(_row(request))

    def _count_foreign_blocks(self) -> None:
        num_free = self.kv.num_free_blocks
        missing = num_free - self._source.num_free_blocks()
        if missing > 0:
            missing -= sum(self._source.num_reserved_blocks(twin.handle) for twin in self.started.twins)
        self.num_foreign_blocks = max(0, missing)
        self.num_own_blocks = num_free - self.num_foreign_blocks


def _row(request: Request) -> Row:
    assert request.row is not None, f"request {request.request_id!r} has no row"
    return Row(request.row)
