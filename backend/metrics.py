"""Every metric in one table, and the recorder that the engine process fills between two flushes.

The stub of model `bros` turns what is flushed into Triton metrics. `python -m backend.metrics` prints docs/metrics.md.
"""

from __future__ import annotations

import enum
import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from backend.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.policy.stats import PreemptionKind, SchedulerStats
from backend.protocol import Metrics, Sample, Timings
from backend.request import PriorityClass, Request


class Kind(enum.Enum):
    """How a metric behaves, in Prometheus's words.

    CUMULATIVE is a histogram written as counters (`_bucket` with label `le`, `_sum`, `_count`), which PromQL reads
    alike: Triton takes one call per observation of a real one, too many for something measured at every token.
    """

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    CUMULATIVE = "histogram, as counters"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels` maps each label to its possible values; `buckets` are upper bounds, for histograms."""

    name: str
    kind: Kind
    doc: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


CLASSES = tuple(priority_class.value for priority_class in PriorityClass)
OUTCOMES = (
    "stop",
    "length",
    "cancelled",
    "invalid_request",
    "too_large",
    "overloaded",
    "engine_down",
    "executor_failed",
    "internal",
)
_BY_CLASS = {"class": CLASSES}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_LONG_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)

METRICS = (
    Metric(
        "bros_requests_total",
        Kind.COUNTER,
        "Requests that ended, by how; one that is refused as invalid counts under its model's class. Those that died "
        "with an engine are not counted.",
        _BY_CLASS | {"outcome": OUTCOMES},
    ),
    Metric("bros_prompt_tokens_total", Kind.COUNTER, "Prompt tokens of requests that ended.", _BY_CLASS),
    Metric("bros_output_tokens_total", Kind.COUNTER, "Tokens sent to clients.", _BY_CLASS),
    Metric(
        "bros_time_to_first_token_seconds",
        Kind.HISTOGRAM,
        "Arrival at the server to the first token.",
        _BY_CLASS,
        _SECONDS,
    ),
    Metric(
        "bros_time_per_output_token_seconds",
        Kind.HISTOGRAM,
        "Mean time per token after the first, of each request.",
        _BY_CLASS,
        _TOKEN_SECONDS,
    ),
    Metric("bros_inter_token_latency_seconds", Kind.CUMULATIVE, "Gap between two tokens.", _BY_CLASS, _TOKEN_SECONDS),
    Metric("bros_request_duration_seconds", Kind.HISTOGRAM, "Arrival to the last token.", _BY_CLASS, _LONG_SECONDS),
    Metric(
        "bros_queue_duration_seconds",
        Kind.HISTOGRAM,
        "Arrival to the first step that worked on the request.",
        _BY_CLASS,
        _SECONDS,
    ),
    Metric(
        "bros_slo_requests_total",
        Kind.COUNTER,
        "Real-time requests that were served to their end, by objective and whether it was met.",
        {"slo": ("ttft", "tpot", "both"), "met": ("true", "false")},
    ),
    Metric(
        "bros_hopeless_slo_requests_total",
        Kind.COUNTER,
        "Those of them whose objective was below what the machine could do with nothing else to do.",
    ),
    Metric(
        "bros_requests",
        Kind.GAUGE,
        "Requests in the engine now.",
        _BY_CLASS | {"state": ("waiting", "running", "preempted")},
    ),
    Metric("bros_kv_slots", Kind.GAUGE, "Token positions of the KV pool.", {"state": ("free", *CLASSES)}),
    Metric(
        "bros_kv_blocks",
        Kind.GAUGE,
        "Blocks of the KV pool that nobody, one class, or both classes hold.",
        {"state": ("free", *CLASSES, "shared")},
    ),
    Metric("bros_kv_host_slots_used", Kind.GAUGE, "Token positions kept in the host pool."),
    Metric(
        "bros_preemptions_total",
        Kind.COUNTER,
        "Losses of KV slots, by victim and by what became of the KV.",
        _BY_CLASS | {"kind": tuple(kind.value for kind in PreemptionKind)},
    ),
    Metric(
        "bros_copied_tokens_total",
        Kind.COUNTER,
        "Tokens whose KV was copied to the host pool, or back.",
        {"direction": ("out", "in")},
    ),
    Metric("bros_recomputed_tokens_total", Kind.COUNTER, "Tokens computed a second time after a preemption."),
    Metric("bros_steps_total", Kind.COUNTER, "Steps that ran."),
    Metric("bros_step_tokens_total", Kind.COUNTER, "New tokens computed in steps.", _BY_CLASS),
    Metric("bros_step_duration_seconds", Kind.CUMULATIVE, "Time of a step.", {}, _TOKEN_SECONDS),
    Metric("bros_step_budget_seconds", Kind.GAUGE, "Longest that the last step might take; +Inf where nothing binds."),
    Metric("bros_be_window_tokens", Kind.GAUGE, "Best-effort tokens that a step may hold at present."),
    Metric(
        "bros_latency_model_error_ratio",
        Kind.GAUGE,
        "Moving average of |predicted - measured| / measured step time.",
    ),
    Metric(
        "bros_engine_honours_plans",
        Kind.GAUGE,
        "1 where each step is our scheduler's; 0 where it decides admission only (TensorRT-LLM's outer mode).",
    ),
    Metric("bros_engine_ready", Kind.GAUGE, "1 while the engine takes requests, else 0."),
)
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
        kv = stats.kv
        slots = {"free": kv.num_free_slots, "rt": kv.num_head_slots, "be": kv.num_tail_slots}
        blocks = {"free": kv.num_free_blocks, "rt": kv.num_head_blocks, "be": kv.num_tail_blocks}
        for state, num_slots in slots.items():
            self._set("bros_kv_slots", {"state": state}, num_slots)
        for state, num_blocks in (blocks | {"shared": kv.num_shared_blocks}).items():
            self._set("bros_kv_blocks", {"state": state}, num_blocks)
        self._set("bros_kv_host_slots_used", {}, kv.num_host_slots_used)
        self._set("bros_be_window_tokens", {}, stats.window_tokens)
        self._set("bros_latency_model_error_ratio", {}, stats.latency_error_ratio)
        for (priority_class, kind), total in stats.total_preemptions.items():
            self._count_up_to("bros_preemptions_total", {"class": priority_class.value, "kind": kind.value}, total)
        for priority_class, total in stats.total_step_tokens.items():
            self._count_up_to("bros_step_tokens_total", {"class": priority_class.value}, total)
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

    # --- what is collected ----------------------------------------------------------------------------------------

    def drain(self) -> Metrics:
        """Return what was collected since the last call."""
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


def counter_names(metric: Metric) -> list[str]:
    """Return the names under which Triton holds a metric: three for a histogram written as counters."""
    return (
        [metric.name + end for end in ("_bucket", "_sum", "_count")]
        if metric.kind is Kind.CUMULATIVE
        else [metric.name]
    )


def labels_of(name: str, metric: Metric) -> Mapping[str, tuple[str, ...]]:
    """Return the labels and their values of a metric under the name that Triton holds: buckets have `le` besides."""
    if metric.kind is Kind.CUMULATIVE and name.endswith("_bucket"):
        return {**metric.labels, "le": (*(f"{bound:g}" for bound in metric.buckets), "+Inf")}
    return metric.labels


def render_reference() -> str:
    """Return docs/metrics.md."""
    rows = [f"| `{metric.name}` | {metric.kind.value} | {_label_words(metric)} | {metric.doc} |" for metric in METRICS]
    buckets = [f"- `{m.name}`: {', '.join(f'{bound:g}' for bound in m.buckets)}" for m in METRICS if m.buckets]
    head = [
        "# Metrics",
        "",
        "Generated by `python -m backend.metrics`; a test compares. They are on Triton's metrics endpoint, beside its",
        "own `nv_*` metrics. A *histogram, as counters* has the samples of a histogram (`_bucket`, `_sum`, `_count`)",
        "under the type counter: Triton takes one call per observation of a real one, too many at every token.",
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", "Upper bounds of the buckets, in seconds:", "", *buckets]) + "\n"


def _label_words(metric: Metric) -> str:
    return "; ".join(f"`{label}`: {', '.join(values)}" for label, values in metric.labels.items())


if __name__ == "__main__":
    print(render_reference(), end="")
