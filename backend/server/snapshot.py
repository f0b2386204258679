"""The engine's state at one moment, as JSON for `bros top` and `bros status`.

`StepLog.record` notes each step as it ends (a few assignments; more only when somebody was preempted). `snapshot` reads
the scheduler on the engine's thread between two steps, when a client asks. The client's side of these types is
`client/snapshot.py`; a contract test passes one through the other.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from backend.core.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.core.request import PriorityClass, Request
from backend.engine.scheduler import Scheduler
from backend.engine.stats import SchedulerStats
from kv.manager import KVCacheManager
from kv.types import Row

VERSION = 1
MAX_REQUESTS = 64  # shown: real-time first, then by arrival
MAX_PREEMPTIONS = 32  # remembered


class ClassCounts(msgspec.Struct, frozen=True):
    """Requests of one class in the engine, by state."""

    num_waiting: int
    num_running: int
    num_preempted: int


class StepView(msgspec.Struct, frozen=True):
    """The last step. Seconds; `budget_s` is None when no deadline bound it. Tokens and requests are by class."""

    duration_s: float
    predicted_s: float
    budget_s: float | None
    num_tokens: dict[str, int]
    num_requests: dict[str, int]


class KVPoolView(msgspec.Struct, frozen=True):
    """The KV pool. Byte i of `head_fill` is the number of slots held from the left of block i, of `tail_fill` from
    its right. `cached_fill` counts those that only the cache holds, from either."""

    block_size: int
    head_fill: bytes
    tail_fill: bytes
    num_host_slots: int
    num_host_slots_used: int
    cached_fill: bytes = b""


class RequestView(msgspec.Struct, frozen=True):
    """One running or preempted request; `slack_s` is the time to its next deadline, None when it has none."""

    request_id: str
    priority_class: str
    state: str
    age_s: float
    slack_s: float | None
    num_known: int
    num_output: int
    num_held: int
    num_on_host: int
    num_preemptions: int


class PreemptionView(msgspec.Struct, frozen=True):
    """One loss of KV slots: the victim kept those of `num_kept` of its `num_known` tokens.

    `in_favour_of` is the real-time request that grew most in that step; None if there was none but the victim.
    """

    step_index: int
    request_id: str
    priority_class: str
    num_kept: int
    num_known: int
    is_checkpointed: bool
    in_favour_of: str | None


class Snapshot(msgspec.Struct, frozen=True):
    """Everything at once; `total_*` only grow."""

    version: int
    policy: str
    requests_by_class: dict[str, ClassCounts]
    latency_error_ratio: float
    total_steps: int
    total_step_tokens: dict[str, int]
    total_preemptions: dict[str, int]
    total_copied_out_tokens: int
    total_copied_in_tokens: int
    total_recomputed_tokens: int
    step: StepView | None
    kv: KVPoolView
    requests: list[RequestView]
    preemptions: list[PreemptionView]
    facts: list[str]


class StepLog:
    """The last step and the latest preemptions; owned by the engine's thread. `facts`: of the executor, in words."""

    def __init__(self) -> None:
        self.facts: Sequence[str] = ()
        self._num_steps = 0
        self._last: tuple[StepPlan, StepResult] | None = None
        self._preemptions: deque[PreemptionView] = deque(maxlen=MAX_PREEMPTIONS)

    def record(self, plan: StepPlan, _batch: StepBatch, result: StepResult, _output: StepOutput) -> None:
        """Note a step that ended; an engine's `Record`."""
        self._num_steps += 1
        self._last = plan, result
        for reclaim in plan.reclaims:
            victim = reclaim.request
            self._preemptions.append(
                PreemptionView(
                    step_index=self._num_steps,
                    request_id=victim.request_id,
                    priority_class=victim.priority_class.value,
                    num_kept=reclaim.num_kept,
                    num_known=len(victim.token_ids),
                    is_checkpointed=reclaim.checkpoint,
                    in_favour_of=_largest_rt(plan.num_new_tokens, victim),
                )
            )

    @property
    def preemptions(self) -> list[PreemptionView]:
        """The latest preemptions, newest last."""
        return list(self._preemptions)

    @property
    def last(self) -> StepView | None:
        """The last step; None before the first."""
        if self._last is None:
            return None
        plan, result = self._last
        rt = [num_new for request, num_new in plan.num_new_tokens.items() if request.is_rt]
        be = [num_new for request, num_new in plan.num_new_tokens.items() if not request.is_rt]
        return StepView(
            duration_s=result.duration_s,
            predicted_s=plan.predicted_s,
            budget_s=plan.budget_s if math.isfinite(plan.budget_s) else None,
            num_tokens={"rt": sum(rt), "be": sum(be)},
            num_requests={"rt": len(rt), "be": len(be)},
        )


def snapshot(scheduler: Scheduler, steps: StepLog, now_s: float, *, names_requests: bool = True) -> Snapshot:
    """Return the state of `scheduler` at `now_s`; to be called on the engine's thread.

    Without `names_requests` it has no requests, preemptions or facts: nothing that tells who asks, or where.
    """
    stats = scheduler.stats()
    preempted = dict.fromkeys(("rt", "be"), 0)
    for (priority_class, _kind), count in stats.total_preemptions.items():
        preempted[priority_class.value] += count
    return Snapshot(
        version=VERSION,
        policy=scheduler.view.settings.policy,
        requests_by_class={
            priority_class.value: ClassCounts(counts.num_waiting, counts.num_running, counts.num_preempted)
            for priority_class, counts in stats.requests.items()
        },
        latency_error_ratio=stats.latency_error_ratio,
        total_steps=stats.total_steps,
        total_step_tokens=_by_name(stats.total_step_tokens),
        total_preemptions=preempted,
        total_copied_out_tokens=stats.total_copied_out_tokens,
        total_copied_in_tokens=stats.total_copied_in_tokens,
        total_recomputed_tokens=stats.total_recomputed_tokens,
        step=steps.last,
        kv=_kv_view(scheduler.kv, stats),
        requests=_request_views(scheduler, now_s) if names_requests else [],
        preemptions=steps.preemptions if names_requests else [],
        facts=list(steps.facts) if names_requests else [],
    )


def snapshot_json(scheduler: Scheduler, steps: StepLog, now_s: float, *, names_requests: bool) -> str:
    """Return `snapshot` as JSON; bytes become base64."""
    return msgspec.json.encode(snapshot(scheduler, steps, now_s, names_requests=names_requests)).decode()


def _kv_view(kv: KVCacheManager, stats: SchedulerStats) -> KVPoolView:
    heads, tails = kv.block_fills()
    return KVPoolView(
        block_size=kv.config.block_size,
        head_fill=heads.astype(np.uint8).tobytes(),
        tail_fill=tails.astype(np.uint8).tobytes(),
        num_host_slots=kv.config.num_host_slots + kv.config.num_host_prefix_slots,
        num_host_slots_used=stats.kv.num_host_slots_used + stats.kv.num_host_prefix_slots_used,
        cached_fill=kv.cached_fills().astype(np.uint8).tobytes(),
    )


def _request_views(scheduler: Scheduler, now_s: float) -> list[RequestView]:
    table = scheduler.view.table
    rows = table.rows()
    order = np.lexsort((table.arrival_index[rows], ~table.is_rt[rows]))
    return [_request_view(scheduler, int(row), now_s) for row in rows[order[:MAX_REQUESTS]]]


def _request_view(scheduler: Scheduler, row: int, now_s: float) -> RequestView:
    request, kv = scheduler.view.table.request(row), scheduler.kv
    deadline_s = float(scheduler.view.table.deadline_s[row])
    return RequestView(
        request_id=request.request_id,
        priority_class=request.priority_class.value,
        state=request.state.value,
        age_s=now_s - request.arrival_s,
        slack_s=deadline_s - now_s if math.isfinite(deadline_s) else None,
        num_known=len(request.token_ids),
        num_output=request.num_output,
        num_held=kv.num_held(Row(row)),
        num_on_host=kv.num_restorable(Row(row)),
        num_preemptions=request.num_preemptions,
    )


def _largest_rt(num_new_tokens: Mapping[Request, int], victim: Request) -> str | None:
    candidates = [request for request in num_new_tokens if request.is_rt and request is not victim]
    return max(candidates, key=num_new_tokens.__getitem__).request_id if candidates else None


def _by_name(by_class: Mapping[PriorityClass, int]) -> dict[str, int]:
    return {priority_class.value: value for priority_class, value in by_class.items()}
