"""Packing: the plan of one step as it grows. It counts tokens, sequences, time and KV slots; it changes no state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from backend.core.plan import PlannedSlots, Reclaim, Restore, StepPlan
from backend.core.request import Request
from backend.policy.state import table_loops
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView
from kv.types import Row, Side

MIN_CHUNK = 16  # tokens; a smaller chunk is not worth its batch slot, unless it ends the prompt


def side_of(request: Request) -> Side:
    """Return the end of a block that a request fills from."""
    return Side.HEAD if request.is_rt else Side.TAIL


class Packing:
    """Takes requests into a step one after the other; `commit` adopts the budget on which their slots are tried here.

    `predicted_s` is the model's time of the step so far; `has_prefill` says whether it has a chunk of a prompt. A
    request that does not fit is refused by an ordinary return value.
    """

    def __init__(self, view: SchedulerView) -> None:
        self.requests: list[Request] = []  # that were taken, in order
        self.tokens_left = view.limits.max_tokens
        self.seqs_left = view.limits.max_seqs
        self.predicted_s = view.latency.c0
        self.has_prefill = False
        self.kv = view.kv.budget()
        self.groups = view.table.groups()
        self._view = view
        self._boundaries: dict[int, list[tuple[int, int]]] = {}  # victim's row -> where it can be cut, and the gain
        self._kept: dict[int, int] = {}  # victim's row -> positions it keeps
        self._restored: dict[Request, int] = {}
        self._rows: list[Rows] = []  # of `requests`
        self._chunks: dict[int, int] = {}  # new tokens by index in `requests`; all others take one
        self._seen: set[Request] = set()  # of `requests`, the first ones
        self.newcomers: dict[Request, None] = {}  # of `requests`, those that have no row yet
        self._reserved: tuple[Request, Row] | None = None  # a newcomer that is not in yet, and its row on the budget

    def add_decodes(self, rows: Rows) -> list[int]:
        """Take one token of each of `rows`, as far as the limits go; return the rows that found no slot."""
        taken, refused = self._grow_each(rows[: min(self.seqs_left, self.tokens_left)])
        self._take_decodes(taken)
        return refused

    def add_first_decodes(self, rows: Rows) -> int:
        """Take one token of each of `rows` in order, up to the first that finds no slot; return how many were taken.
        There must be batch slots and tokens for all."""
        assert len(rows) <= min(self.seqs_left, self.tokens_left), f"no batch slots for {len(rows)} decodes"
        self._release()
        num_taken = self.kv.try_grow_each_by_one(rows) if len(rows) else 0
        if num_taken:
            self._take_decodes(rows[:num_taken])
        return num_taken

    def num_in_time(self, rows: Rows, budget_s: float) -> int:
        """Return how many of `rows`, from the first one on, could be taken for one token each within `budget_s` and the
        limits. The first thing in a step is always in time."""
        rows = rows[: min(self.seqs_left, self.tokens_left)]
        latency = self._view.latency
        num = table_loops.num_in_time(self._view.table.counts, rows, latency.c1, latency.c2, self.predicted_s, budget_s)
        return num if self.requests else max(num, len(rows[:1]))

    def in_time(self, rows: Rows, budget_s: float) -> Rows:
        """Return those of `rows` of which each alone could still be taken for one token within `budget_s`."""
        if self.tokens_left < 1 or self.seqs_left < 1:
            return rows[:0]
        latency = self._view.latency
        decode_s = latency.c1 + latency.c2 * self._view.table.num_computed[rows]
        return rows[self.predicted_s + decode_s <= budget_s] if self.requests else rows

    def add(self, request: Request, num_tokens: int, num_restored: int = 0) -> bool:
        """Take `num_tokens` (> 0) of `request`, after `num_restored` that come back from the host; all or nothing."""
        assert num_tokens > 0, f"request {request.request_id!r}: no tokens to add"
        if self.seqs_left < 1 or num_tokens > self.tokens_left:
            return False
        row = self._row_of(request)
        num_missing = len(request.token_ids) - self._num_computed(request)
        assert num_tokens + num_restored <= num_missing, f"request {request.request_id!r}: {num_tokens} tokens"
        if num_restored and request.row is None and num_restored > self._num_on_host(request):  # less is borrowed now
            return False
        if not self.kv.try_grow(row, side_of(request), num_tokens + num_restored):
            return False
        if request.row is None:
            row, self._reserved = self.kv.opened[-1], None
            self.newcomers[request] = None
        self._chunks[len(self.requests)] = num_tokens
        self.requests.append(request)
        self._rows.append(np.array((row,), np.int64))
        if num_restored:
            self._restored[request] = num_restored
        self.tokens_left -= num_tokens
        self.seqs_left -= 1
        self.predicted_s += self.cost_s(request, num_tokens, num_restored)
        self.has_prefill |= num_tokens > 1
        return True

    def chunk(self, request: Request, time_left_s: float, max_tokens: int, num_restored: int = 0) -> int:
        """Return how many tokens of `request` fit into `time_left_s`, `max_tokens` and the limits; 0 if not worth it.

        What would be alone in the step is taken whatever its time, so that the engine never stands still.
        """
        self._row_of(request)  # what this step took from others may have been its prefix
        max_tokens = min(max_tokens, self.tokens_left)
        if self.seqs_left < 1 or max_tokens < 1:
            return 0
        wanted = request.num_uncomputed - num_restored
        is_alone = not self.requests
        if wanted == 1 or not self._view.settings.chunked_prefill:
            whole = min(wanted, self._view.limits.max_tokens)
            fits = is_alone or self.cost_s(request, whole, num_restored) <= time_left_s
            return whole if fits and whole <= max_tokens else 0
        context = request.num_computed + num_restored
        by_time = self._view.latency.max_chunk(time_left_s - self.any_prefill_s, context, wanted)
        if by_time < min(wanted, MIN_CHUNK):
            return min(wanted, MIN_CHUNK, max_tokens) if is_alone else 0
        return min(wanted, by_time, max_tokens)

    def chunk_by(self, request: Request, end_s: float, max_tokens: int) -> tuple[int, int]:
        """Return how many tokens of `request` fit into `end_s`, `max_tokens` and the limits; 0 if not worth it.

        The second number is that of the positions to copy back before them.
        """
        time_left_s = end_s - self.predicted_s
        num_restored = self.num_to_restore(request, time_left_s)
        time_left_s -= self._view.latency.c4 * num_restored
        return self.chunk(request, time_left_s, max_tokens - num_restored, num_restored), num_restored

    def num_to_restore(self, request: Request, time_left_s: float) -> int:
        """Return how many positions of a preempted request, or of one that begins, to copy back from the host.

        All that the host has, or none: it copies where that fits the time and is cheaper than to compute them.
        """
        if request.row is None:
            num_restored = self._num_on_host(request)
        elif not self._view.table.is_preempted[request.row] or self.has_cuts:
            return 0  # a reclaim of this step may push the copies out of the host pool
        else:
            num_restored = min(self._view.kv.num_restorable(Row(request.row)), request.num_uncomputed - 1)
        copy_s = self._view.latency.c4 * num_restored
        is_cheaper = copy_s < self._view.latency.prefill_s(num_restored, request.num_computed)
        return num_restored if is_cheaper and (copy_s <= time_left_s or not self.requests) else 0

    def _num_on_host(self, request: Request) -> int:
        """Return how many tokens the host has of a request that begins, behind those that it borrows."""
        if request.prefix is None or not self._view.settings.prefix_host_tokens:
            return 0
        self._row_of(request)
        return self._view.kv.num_on_host(request.prefix, request.num_computed)

    @property
    def any_prefill_s(self) -> float:
        """What the next prefill adds to the step for being the first."""
        return 0.0 if self.has_prefill else self._view.latency.c5

    def cost_s(self, request: Request, num_tokens: int, num_restored: int = 0) -> float:
        """Return what `num_tokens` of `request` add to the step's time."""
        latency = self._view.latency
        start = request.num_computed + num_restored
        if num_tokens == 1:
            return latency.c1 + latency.c2 * start + latency.c4 * num_restored
        return self.any_prefill_s + latency.prefill_s(num_tokens, start) + latency.c4 * num_restored

    def room_for(self, request: Request, enough: int | None = None) -> int:
        """Return how many more KV slots `request` could take now; or any number that is at least `enough`."""
        return self.kv.max_growth(self._row_of(request), side_of(request), enough)

    def _row_of(self, request: Request) -> Row | None:
        """Return the row of `request`. One without gets a row on the budget if there is a prefix to borrow. Then the
        slots of that prefix are not among those that make room for it."""
        if self._reserved is not None and self._reserved[0] is request:
            return self._reserved[1]
        self._release()
        if request.row is not None:
            return Row(request.row)
        if not request.num_computed or request.prefix is None or request in self.newcomers:
            return None
        row = self.kv.reserve(side_of(request), request.prefix.lenders, request.num_computed)
        if row is None:
            request.num_computed = 0
        else:
            self._reserved = request, row
        return row

    def _release(self) -> None:
        """Give back the row of a newcomer that was not taken."""
        if self._reserved is not None:
            self.kv.release()
            self._reserved = None

    def make_room(self, request: Request, num_slots: int, victims: Iterable[int]) -> bool:
        """Take slots from the ends of `victims` (rows) in order until `request` can grow by `num_slots`.

        A victim keeps the slots that were not needed. False if all of them do not suffice; taken slots stay taken.
        """
        for victim in victims:
            num_before = -1
            while (num_held := self.num_held(victim)) not in (0, num_before):  # others may borrow the rest
                if (missing := num_slots - self.room_for(request)) <= 0:
                    return True
                num_before = num_held
                self.cut(victim, self._least_cut(victim, missing))
        return self.room_for(request, num_slots) >= num_slots

    def make_room_whole(self, request: Request, num_slots: int, victims: Iterable[int]) -> bool:
        """Do as `make_room`, but take all that a victim has, in the order given: what engines without prefixes do."""
        for victim in victims:
            if self.room_for(request, num_slots) >= num_slots:
                break
            self.cut(victim, 0)
        return self.room_for(request, num_slots) >= num_slots

    def cut(self, victim: int, num_kept: int) -> None:
        """Let `victim` (a row not in this step) keep its first `num_kept` positions only, and what others borrow."""
        num_kept = self.kv.shrink(Row(victim), num_kept)
        if num_kept == self.num_held(victim):
            return
        self._kept[victim] = num_kept
        boundaries = self._boundaries.get(victim, ())
        num_gained = next((gained for kept, gained in boundaries if kept == num_kept), 0)
        self._boundaries[victim] = [(kept, gained - num_gained) for kept, gained in boundaries if kept < num_kept]

    def num_held(self, row: int) -> int:
        """Return how many positions `row` holds after the cuts of this step."""
        return self._kept.get(row, int(self._view.table.num_computed[row]))

    def _num_computed(self, request: Request) -> int:
        """Return the computed tokens of `request` after the cuts of this step, its own among them (`_unblock`)."""
        return request.num_computed if request.row is None else self._kept.get(request.row, request.num_computed)

    def is_cut(self, row: int) -> bool:
        """Return whether `row` lost slots in this step."""
        return row in self._kept

    def uncut(self, rows: Rows) -> Rows:
        """Return those of `rows` that lost no slots in this step."""
        return rows[[row not in self._kept for row in rows.tolist()]] if self._kept else rows

    @property
    def has_cuts(self) -> bool:
        """Whether anything was preempted in this step."""
        return bool(self._kept)

    def is_in_step(self, row: int) -> bool:
        """Return whether the request in `row` was taken."""
        return self.has(self._view.table.request(row))

    def has(self, request: Request) -> bool:
        """Return whether `request` was taken."""
        self._seen.update(self.requests[len(self._seen) :])
        return request in self._seen

    def victims(self, rows: Rows) -> Iterator[int]:
        """Yield those of `rows` that can lose slots to this step, each judged when its turn comes: what does not run
        first, then the youngest. Age does not change, so that no two preempt each other in turn."""
        table = self._view.table
        order = np.lexsort((-table.arrival_index[rows], ~table.is_preempted[rows]))
        return (row for row in rows[order].tolist() if self.num_held(row) and not self.is_in_step(row))

    def plan(self, budget_s: float) -> StepPlan:
        """Return the plan of all that was taken; if that is nothing, of what can be forced."""
        self._release()
        if not self.requests:
            self._unblock()
        if not self.requests:
            return StepPlan(budget_s=budget_s)
        reclaims = [self._reclaim(victim, num_kept) for victim, num_kept in self._kept.items()]
        restores = [Restore(request, num_tokens) for request, num_tokens in self._restored.items()]
        counts = np.empty(len(self.requests), np.int64)
        counts.fill(1)  # np.ones takes longer
        for index, num_tokens in self._chunks.items():
            counts[index] = num_tokens
        slots = PlannedSlots(self.kv, np.concatenate(self._rows), counts, list(self.newcomers))
        return StepPlan(self.requests, counts.tolist(), reclaims, restores, self.predicted_s, budget_s, slots)

    def _unblock(self) -> None:
        """Give the oldest started request, real-time first, room from all others, since all of them wait for slots.

        Age does not change while requests run, so the oldest always gets on. If even the whole pool is not enough, its
        own slots have gaps. Others held the opposite ends of its blocks, or lend it their own. It begins again without
        them. So does the first that waits where nothing has started.
        """
        table, rows = self._view.table, self._view.table.rows()
        if not len(rows):
            self._begin_without_prefix()
            return
        rows = rows[np.lexsort((table.arrival_index[rows], ~table.is_rt[rows]))]
        first = table.request(int(rows[0]))
        num_tokens = min(first.num_uncomputed, self.tokens_left)
        others = rows[:0:-1].tolist()
        if not self._take_all(first, num_tokens, others):
            self.cut(int(rows[0]), 0)
            num_tokens = min(len(first.token_ids), self.tokens_left)
            self._take_all(first, num_tokens, others)  # also what it borrowed of them until now
        self.add(first, num_tokens)

    def _take_all(self, request: Request, num_slots: int, victims: Sequence[int]) -> bool:
        """Do `make_room_whole` until nothing is left to take: who borrows has to let go before who lends can."""
        num_held = [0]
        while not self.make_room_whole(request, num_slots, filter(self.num_held, victims)):
            self.kv.evict_all()  # cached rows borrow, too
            before, num_held = num_held, list(map(self.num_held, victims))
            if num_held == before:
                return False
        return True

    def _begin_without_prefix(self) -> None:
        """Take the first request that waits, if it did not fit because of where the slots are that it would borrow."""
        rt, be = self._view.rt_waiting, self._view.be_waiting
        first = next(chain(rt.in_time(), rt.relegated(), be.in_time(), be.relegated()), None)
        if first is not None and first.num_computed:
            first.num_computed = 0
            self.add(first, min(len(first.token_ids), self.tokens_left))

    def _take_decodes(self, rows: Rows) -> None:
        """Count one token of each of `rows`, which have their slots."""
        self.requests += self._view.table.requests_in(rows)
        self._rows.append(rows)
        self.tokens_left -= len(rows)
        self.seqs_left -= len(rows)
        latency = self._view.latency
        self.predicted_s += latency.c1 * len(rows) + latency.c2 * table_loops.context(self._view.table.counts, rows)

    def _grow_each(self, rows: Rows) -> tuple[Rows, list[int]]:
        """Take a slot for each of `rows` in order; return those that got one and those that did not."""
        self._release()
        num_grown = self.kv.try_grow_each_by_one(rows)
        if num_grown == len(rows):
            return rows, []
        refused = [int(rows[num_grown])]
        taken = rows[:num_grown].tolist()
        for row in rows[num_grown + 1 :].tolist():
            (taken if self.kv.try_grow(Row(row), side_of(self._view.table.request(row)), 1) else refused).append(row)
        return np.array(taken, np.int64), refused

    def _least_cut(self, victim: int, missing: int) -> int:
        """Return what `victim` keeps after the least cut that gains `missing` slots, or after all."""
        if victim not in self._boundaries:
            self._boundaries[victim] = self.kv.tail_boundaries(Row(victim))
        boundaries = self._boundaries[victim]
        return next((kept for kept, gained in boundaries if gained >= missing), 0)

    def _repair(self, num_lost: int, num_kept: int) -> tuple[float, bool]:
        """Return the time that losing positions costs at best, and whether that is by a copy there and back."""
        latency = self._view.latency
        copies_s, recompute_s = 2 * latency.c4 * num_lost, latency.prefill_s(num_lost, num_kept)
        is_copied = self._view.settings.checkpoints and copies_s < recompute_s
        return (copies_s if is_copied else recompute_s), is_copied

    def _reclaim(self, victim: int, num_kept: int) -> Reclaim:
        """Choose between keeping the lost KV in the host pool and computing it again, by the model (design §4).

        A step that restores saves nothing: in a full host pool that could push out what it restores.
        """
        request = self._view.table.request(victim)
        _, is_copied = self._repair(request.num_computed - num_kept, num_kept)
        return Reclaim(request, num_kept, checkpoint=is_copied and not self._restored)
