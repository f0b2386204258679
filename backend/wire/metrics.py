"""Every metric in one table: the engine process fills it, the stub of model `bros` turns it into Triton metrics.

`python -m backend.wire.metrics` prints docs/metrics.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.core.plan import PreemptionKind
from backend.core.request import PrefixSource, PriorityClass


class Kind(enum.Enum):
    """How a metric behaves, in Prometheus's words.

    CUMULATIVE is a histogram written as counters (`_bucket` with label `le`, `_sum`, `_count`). PromQL reads both
    alike. Triton needs one call per observation of a real histogram, too many for one observation per token.
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
        "Ended requests by outcome. A request refused as invalid counts under its model's class. Requests that "
        "ended with a dead engine are not counted.",
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
        "Real-time requests served to their end, by objective and whether it was met.",
        {"slo": ("ttft", "tpot", "both"), "met": ("true", "false")},
    ),
    Metric(
        "bros_hopeless_slo_requests_total",
        Kind.COUNTER,
        "Those of them whose objective the machine could not meet even without other work.",
    ),
    Metric(
        "bros_requests",
        Kind.GAUGE,
        "Requests in the engine now.",
        _BY_CLASS | {"state": ("waiting", "running", "preempted")},
    ),
    # The three that routers in front of many replicas read (llm-d, the Gateway API's endpoint picker): without labels.
    Metric("bros_waiting_requests", Kind.GAUGE, "Requests that hold no KV slots yet, or lost them; both classes."),
    Metric("bros_running_requests", Kind.GAUGE, "Requests that may be in the next step; both classes."),
    Metric("bros_kv_used_ratio", Kind.GAUGE, "Part of the KV pool's token positions that requests hold, 0 to 1."),
    Metric(
        "bros_kv_slots",
        Kind.GAUGE,
        "Token positions of the KV pool; cached ones may be borrowed, and those that are not count as good as free.",
        {"state": ("free", *CLASSES, "cached")},
    ),
    Metric(
        "bros_prefix_tokens_total",
        Kind.COUNTER,
        "Tokens of prompts that began, by whether their KV was there already, on the device or on the host.",
        _BY_CLASS | {"source": tuple(source.value for source in PrefixSource)},
    ),
    Metric("bros_kv_evicted_slots_total", Kind.COUNTER, "Cached token positions that were taken for others."),
    Metric(
        "bros_kv_blocks",
        Kind.GAUGE,
        "Blocks of the KV pool held by no class, one class, or both, cached ones included.",
        {"state": ("free", *CLASSES, "shared")},
    ),
    Metric("bros_kv_host_slots_used", Kind.GAUGE, "Token positions kept in the host pool."),
    Metric(
        "bros_preemptions_total",
        Kind.COUNTER,
        "Preemptions by class of the victim: its KV was copied to the host, or is computed again.",
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
    Metric("bros_step_budget_seconds", Kind.GAUGE, "Time limit of the last step; +Inf without a limit."),
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
        "Generated by `python -m backend.wire.metrics`; a test compares. They are on Triton's metrics endpoint,",
        "beside its own `nv_*` metrics. A *histogram, as counters* has the samples of a histogram (`_bucket`, `_sum`,",
        "`_count`) under the type counter. Triton needs one call per observation of a real histogram. That is too",
        "many at one observation per token.",
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", "Upper bounds of the buckets, in seconds:", "", *buckets]) + "\n"


def _label_words(metric: Metric) -> str:
    return "; ".join(f"`{label}`: {', '.join(values)}" for label, values in metric.labels.items())


if __name__ == "__main__":
    print(render_reference(), end="")
