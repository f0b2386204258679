"""A frozen snapshot of the scheduler, from which metrics are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.core.plan import PreemptionKind
from backend.core.request import PrefixSource, PriorityClass
from kv.types import KVUsage


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Requests of one class in the scheduler now, by state."""

    num_waiting: int
    num_running: int
    num_preempted: int


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Where the scheduler stands. `requests` are counts of now; every `total_*` only grows.

    latency_coefficients: c0..c5 in seconds per unit (see `latency_model`). latency_error_ratio: moving average of
    |predicted - measured| / measured step time.
    total_step_tokens: new tokens computed, by class. total_recomputed_tokens: tokens computed a second time.
    total_prefix_tokens: tokens of prompts that were begun. total_evicted_slots: cached slots taken for others.
    """

    requests: Mapping[PriorityClass, ClassCounts]
    kv: KVUsage
    latency_coefficients: tuple[float, ...]
    latency_error_ratio: float
    total_steps: int
    total_step_tokens: Mapping[PriorityClass, int]
    total_preemptions: Mapping[tuple[PriorityClass, PreemptionKind], int]
    total_copied_out_tokens: int
    total_copied_in_tokens: int
    total_recomputed_tokens: int
    total_prefix_tokens: Mapping[tuple[PriorityClass, PrefixSource], int] = field(default_factory=dict)
    total_evicted_slots: int = 0
