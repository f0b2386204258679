"""The recorder that the engine process fills between two flushes; the metrics stand in `backend.wire.metrics`."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from backend.core.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.core.request import Request
from backend.engine.stats import SchedulerStats
from backend.wire.metrics import METRICS, labels_of
from backend.wire.protocol import Metrics, Sample, Timings

MAX_OBSERVATIONS = 10_000  # of one series between two flushes; more are dropped

_TABLE = {metric.name: metric for metric in METRICS}
_Labels = tuple[tuple[str, str], ...]


class Recorder:
    """Collects between two flushes; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, _Labels], float] = {}
        self._values: dict[tuple[str, _Labels], float] = {}
        self._observations: dict[tuple[str, _Labels], list[float]] = {}
        self._buckets: dict[tuple[str, _Labels], _Buckets] = {}
        self._totals: dict[tuple[str, _Labels], float] = {}  # of the scheduler's, at the last flush

    # --- what happens ---------------------------------------------------------------------------------------------

    def refused(self, priority_class: str, code: str) -> None:
        """Note a request that was refused at the door."""
        self._count("bros_requests_total", {"class": priority_class, "outcome": code.lower()})

    def token(self, request: Request, gap_s: float | None) -> None:
        """Note an output token; `gap_s` since the one before it."""
        labels = {"class": request.priority_class.value}
        self._count("bros_output_tokens_total", labels)
        if gap_s is not None:
            self._accumulate("bros_inter_token_latency_seconds", labels, gap_s)

    def end(self, request: Request, timings: Timings, outcome: str) -> None:
        """Note that a request ended."""
        labels = {"class": request.priority_class.value}
        self._count("bros_requests_total", labels | {"outcome": outcome})
        self._count("bros_prompt_tokens_total", labels, timings.num_input_tokens)
        self._observe("bros_queue_duration_seconds", labels, timings.queue_s)
        self._observe("bros_time_to_first_token_seconds", labels, timings.ttft_s)
        self._observe("bros_time_per_output_token_seconds", labels, timings.tpot_s)
        if outcome in ("stop", "length") and timings.ttft_s is not None:
            decode_s = (timings.tpot_s or 0.0) * (timings.num_output_tokens - 1)
            self._observe("bros_request_duration_seconds", labels, timings.ttft_s + decode_s)
            self._attainment(request, timings, timings.ttft_s)

    def step(self, plan: StepPlan, _batch: StepBatch, result: StepResult, _output: StepOutput) -> None:
        """Note a step; an engine's `Record`."""
        self._accumulate("bros_step_duration_seconds", {}, result.duration_s)
        self._set("bros_step_budget_seconds", {}, plan.budget_s)

    def honours_plans(self, does: bool) -> None:
        """Note whether each step of this engine is our scheduler's."""
        self._set("bros_engine_honours_plans", {}, float(does))

    def scheduler(self, stats: SchedulerStats) -> None:
        """Note where the scheduler stands."""
        for priority_class, requests in stats.requests.items():
            labels = {"class": priority_class.value}
            self._set("bros_requests", labels | {"state": "waiting"}, requests.num_waiting)
            self._set("bros_requests", labels | {"state": "running"}, requests.num_running)
            self._set("bros_requests", labels | {"state": "preempted"}, requests.num_preempted)
        everyone = stats.requests.values()
        self._set("bros_waiting_requests", {}, sum(count.num_waiting + count.num_preempted for count in everyone))
        self._set("bros_running_requests", {}, sum(count.num_running for count in everyone))
        kv = stats.kv
        slots = {"free": kv.num_free_slots, "rt": kv.num_head_slots, "be": kv.num_tail_slots}
        slots["cached"] = kv.num_cached_slots
        blocks = {
            "free": kv.num_free_blocks,
            "rt": kv.num_head_blocks - kv.num_shared_blocks,
            "be": kv.num_tail_blocks - kv.num_shared_blocks,
            "shared": kv.num_shared_blocks,
        }
        self._set(
            "bros_kv_used_ratio", {}, 1.0 - (kv.num_free_slots + kv.num_cached_slots) / max(1, sum(slots.values()))
        )
        for state, num_slots in slots.items():
            self._set("bros_kv_slots", {"state": state}, num_slots)
        for state, num_blocks in blocks.items():
            self._set("bros_kv_blocks", {"state": state}, num_blocks)
        self._set("bros_kv_host_slots_used", {}, kv.num_host_slots_used + kv.num_host_prefix_slots_used)
        self._set("bros_latency_model_error_ratio", {}, stats.latency_error_ratio)
        for (priority_class, kind), total in stats.total_preemptions.items():
            self._count_up_to("bros_preemptions_total", {"class": priority_class.value, "kind": kind.value}, total)
        for priority_class, total in stats.total_step_tokens.items():
            self._count_up_to("bros_step_tokens_total", {"class": priority_class.value}, total)
        for (priority_class, source), total in stats.total_prefix_tokens.items():
            self._count_up_to(
                "bros_prefix_tokens_total", {"class": priority_class.value, "source": source.value}, total
            )
        self._count_up_to("bros_kv_evicted_slots_total", {}, stats.total_evicted_slots)
        self._count_up_to("bros_copied_tokens_total", {"direction": "out"}, stats.total_copied_out_tokens)
        self._count_up_to("bros_copied_tokens_total", {"direction": "in"}, stats.total_copied_in_tokens)
        self._count_up_to("bros_recomputed_tokens_total", {}, stats.total_recomputed_tokens)
        self._count_up_to("bros_steps_total", {}, stats.total_steps)

    def _attainment(self, request: Request, timings: Timings, ttft_s: float) -> None:
        if request.slo is None:
            return
        if request.is_hopeless:
            self._count("bros_hopeless_slo_requests_total", {})
        met_ttft = ttft_s <= request.slo.ttft_slo_s
        met_tpot = timings.tpot_s is None or timings.tpot_s <= request.slo.tpot_slo_s
        for slo, is_met in (("ttft", met_ttft), ("tpot", met_tpot), ("both", met_ttft and met_tpot)):
            self._count("bros_slo_requests_total", {"slo": slo, "met": "true" if is_met else "false"})

    # --- collected counts -----------------------------------------------------------------------------------------

    def drain(self) -> Metrics:
        """Return all counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, {}
            values, self._values = self._values, {}
            observations, self._observations = self._observations, {}
            buckets, self._buckets = self._buckets, {}
        return Metrics(
            (
                *(Sample(name, dict(labels), value) for (name, labels), value in counts.items() if value),
                *(Sample(name, dict(labels), value) for (name, labels), value in values.items()),
                *(Sample(n, dict(labels), observations=tuple(seen)) for (n, labels), seen in observations.items()),
                *(sample for (name, labels), seen in buckets.items() for sample in seen.samples(name, labels)),
            )
        )

    def _count(self, name: str, labels: Mapping[str, str], amount: float = 1.0) -> None:
        key = _key(name, labels)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0.0) + amount

    def _count_up_to(self, name: str, labels: Mapping[str, str], total: float) -> None:
        """Count what a total has grown by since the last time."""
        key = _key(name, labels)
        with self._lock:
            grown_by = total - self._totals.get(key, 0.0)
            self._totals[key] = total
        self._count(name, labels, grown_by)

    def _set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        with self._lock:
            self._values[_key(name, labels)] = value

    def _observe(self, name: str, labels: Mapping[str, str], value: float | None) -> None:
        if value is None:
            return
        with self._lock:
            seen = self._observations.setdefault(_key(name, labels), [])
            if len(seen) < MAX_OBSERVATIONS:
                seen.append(value)

    def _accumulate(self, name: str, labels: Mapping[str, str], value: float) -> None:
        key = _key(name, labels)
        with self._lock:
            buckets = self._buckets.setdefault(key, _Buckets([0] * (len(_TABLE[name].buckets) + 1)))
            buckets.counts[bisect_left(_TABLE[name].buckets, value)] += 1
            buckets.sum += value


@dataclass(slots=True)
class _Buckets:
    """Observations between two flushes, counted by the one bucket each falls in."""

    counts: list[int]
    sum: float = 0.0

    def samples(self, name: str, labels: _Labels) -> list[Sample]:
        """Return them as increments of counters; a bucket counts all that lies below its bound, as in Prometheus.

        Buckets that do not grow are left out: each increment is a round trip between stub and server.
        """
        bounds = labels_of(f"{name}_bucket", _TABLE[name])["le"]
        cumulative = list(accumulate(self.counts))
        return [
            Sample(f"{name}_sum", dict(labels), self.sum),
            Sample(f"{name}_count", dict(labels), cumulative[-1]),
            *(
                Sample(f"{name}_bucket", {**dict(labels), "le": le}, n)
                for le, n in zip(bounds, cumulative, strict=True)
                if n
            ),
        ]


def _key(name: str, labels: Mapping[str, str]) -> tuple[str, _Labels]:
    return name, tuple(sorted(labels.items()))
