"""Measurements: one table, what the recorder makes of events, and how they add up in Prometheus's terms."""

from __future__ import annotations

import re
from typing import Any

import pytest

from backend.config import REPOSITORY_ROOT
from backend.core.request import FinishReason, PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.stats import ClassCounts, SchedulerStats
from backend.server.metrics import MAX_OBSERVATIONS, Recorder
from backend.wire.metrics import METRICS, OUTCOMES, Kind, counter_names, labels_of, render_reference
from backend.wire.protocol import Sample, Timings
from kv.types import KVUsage

TIMINGS = Timings(queue_s=0.1, ttft_s=0.3, tpot_s=0.05, num_preemptions=0, num_input_tokens=7, num_output_tokens=11)


def make_request(ttft_slo_s: float = 1.0, tpot_slo_s: float = 0.1) -> Request:
    slo = Slo(ttft_slo_s, tpot_slo_s)
    return Request(RequestId("a"), PriorityClass.REAL_TIME, (1,), SamplingParams(), arrival_s=0.0, slo=slo)


def drained(recorder: Recorder) -> dict[tuple[str, ...], Sample]:
    """Return the flushed values, by name and label values in the order of their names."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample
        for sample in recorder.drain().samples
    }


def test_every_name_is_one_that_the_server_survives() -> None:
    names = [name for metric in METRICS for name in counter_names(metric)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"bros_[a-z_]+", name) for name in names)


def test_counters_end_in_total_and_times_in_seconds() -> None:
    for metric in METRICS:
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total"), metric.name
        assert not metric.buckets or metric.name.endswith("_seconds"), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind in (Kind.HISTOGRAM, Kind.CUMULATIVE))


def test_outcomes_are_the_finish_reasons_and_the_codes_of_errors() -> None:
    assert {reason.value for reason in FinishReason} - {"error"} <= set(OUTCOMES)


def test_an_end_is_counted_and_observed_once() -> None:
    recorder = Recorder()
    recorder.end(make_request(), TIMINGS, "length")
    seen = drained(recorder)
    assert seen["bros_requests_total", "rt", "length"].value == 1
    assert seen["bros_prompt_tokens_total", "rt"].value == 7
    assert seen["bros_time_to_first_token_seconds", "rt"].observations == (0.3,)
    assert seen["bros_request_duration_seconds", "rt"].observations == (pytest.approx(0.3 + 10 * 0.05),)
    assert not drained(recorder)


@pytest.mark.parametrize(
    ("ttft_slo_s", "tpot_slo_s", "met"),
    [
        (1.0, 0.1, ("true", "true", "true")),
        (0.2, 0.1, ("false", "true", "false")),
        (1.0, 0.01, ("true", "false", "false")),
    ],
)
def test_attainment_is_counted_by_objective(ttft_slo_s: float, tpot_slo_s: float, met: tuple[str, str, str]) -> None:
    recorder = Recorder()
    recorder.end(make_request(ttft_slo_s, tpot_slo_s), TIMINGS, "stop")
    counted = {key[1:] for key in drained(recorder) if key[0] == "bros_slo_requests_total"}
    assert counted == set(zip(met, ("ttft", "tpot", "both"), strict=True))


def test_a_cancelled_request_says_nothing_about_objectives() -> None:
    recorder = Recorder()
    recorder.end(make_request(), TIMINGS, "cancelled")
    assert not any(key[0] == "bros_slo_requests_total" for key in drained(recorder))


def test_requests_whose_objective_was_hopeless_are_counted_apart() -> None:
    recorder, hopeless = Recorder(), make_request()
    hopeless.is_hopeless = True
    for request in (hopeless, make_request()):
        recorder.end(request, TIMINGS, "stop")
    assert drained(recorder)["bros_hopeless_slo_requests_total",].value == 1


def test_gaps_between_tokens_make_cumulative_buckets() -> None:
    recorder = Recorder()
    for gap_s in (None, 0.004, 0.05, 0.06, 99.0):
        recorder.token(make_request(), gap_s)
    seen = drained(recorder)
    name = "bros_inter_token_latency_seconds"
    assert seen["bros_output_tokens_total", "rt"].value == 5
    counts = {bound: seen[f"{name}_bucket", "rt", bound].value for bound in ("0.005", "0.04", "0.06", "10", "+Inf")}
    assert counts == {"0.005": 1, "0.04": 1, "0.06": 3, "10": 3, "+Inf": 4}
    assert seen[f"{name}_count", "rt"].value == 4
    assert seen[f"{name}_sum", "rt"].value == pytest.approx(99.114)


def test_what_is_flushed_is_in_the_table_with_these_labels() -> None:
    recorder = Recorder()
    recorder.token(make_request(), 0.1)
    recorder.end(make_request(), TIMINGS, "stop")
    recorder.refused("be", "OVERLOADED")
    recorder.honours_plans(True)
    table = {name: labels_of(name, metric) for metric in METRICS for name in counter_names(metric)}
    for sample in recorder.drain().samples:
        assert set(sample.labels) == set(table[sample.name])
        assert all(value in table[sample.name][label] for label, value in sample.labels.items())


def gauges_of(kv: KVUsage) -> dict[tuple[str, ...], Sample]:
    """Return the flushed values of a scheduler with requests of both classes and this KV pool."""
    counts = {kind: ClassCounts(num_waiting=2, num_running=3, num_preempted=1) for kind in PriorityClass}
    nothing: dict[str, Any] = {"total_step_tokens": {}, "total_preemptions": {}}
    totals = dict.fromkeys(("total_copied_out_tokens", "total_copied_in_tokens", "total_recomputed_tokens"), 0)
    recorder = Recorder()
    recorder.scheduler(SchedulerStats(counts, kv, (), 0.0, 0, **nothing, **totals))
    return drained(recorder)


def test_each_block_of_the_pool_is_counted_in_one_state() -> None:
    usage = KVUsage(
        0, 0, 0, num_free_blocks=3, num_head_blocks=5, num_tail_blocks=4, num_shared_blocks=2, num_host_slots_used=0
    )
    seen = gauges_of(usage)
    num_blocks = {state: seen["bros_kv_blocks", state].value for state in ("free", "rt", "be", "shared")}
    assert num_blocks == {"free": 3, "rt": 3, "be": 2, "shared": 2}


def test_what_routers_read_has_no_labels_and_adds_both_classes_up() -> None:
    seen = gauges_of(KVUsage(30, 50, 20, *[0] * 5))
    assert seen["bros_waiting_requests",].value == 6
    assert seen["bros_running_requests",].value == 6
    assert seen["bros_kv_used_ratio",].value == pytest.approx(0.7)


def test_without_a_reader_memory_stays_bounded() -> None:
    recorder = Recorder()
    for _ in range(MAX_OBSERVATIONS + 5):
        recorder.end(make_request(), TIMINGS, "stop")
    seen = drained(recorder)
    assert len(seen["bros_queue_duration_seconds", "rt"].observations) == MAX_OBSERVATIONS
    assert seen["bros_requests_total", "rt", "stop"].value == MAX_OBSERVATIONS + 5


def test_the_reference_is_what_the_table_says() -> None:
    written = (REPOSITORY_ROOT / "docs" / "metrics.md").read_text()
    assert written == render_reference(), "run: python -m backend.wire.metrics > docs/metrics.md"
