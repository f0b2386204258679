"""Flushes what the engine measured into Triton's metrics; used by one stub only, so that nothing counts twice."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from backend.wire.metrics import METRICS, Kind, Metric, counter_names, labels_of
from backend.wire.protocol import Metrics, Sample


class TritonMetrics:
    """Metric families in Triton, made of the table. `family` is `pb_utils.MetricFamily`.

    Called from one thread. Every call into a metric is a round trip to the server, so it is made on a timer. Every
    series is there from the start, at zero, so that rates are right from the first event on.
    """

    def __init__(self, family: Any) -> None:
        kinds = {Kind.GAUGE: family.GAUGE, Kind.HISTOGRAM: family.HISTOGRAM}
        self._table: Mapping[str, Metric] = {name: metric for metric in METRICS for name in counter_names(metric)}
        self._families = {
            name: family(name=name, description=metric.doc, kind=kinds.get(metric.kind, family.COUNTER))
            for name, metric in self._table.items()
        }
        self._series: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        for name, metric in self._table.items():
            labels = labels_of(name, metric)
            for values in product(*labels.values()):
                self._series_of(Sample(name, dict(zip(labels, values, strict=True))))

    def flush(self, metrics: Metrics) -> None:
        """Apply increments, values and observations."""
        for sample in metrics.samples:
            series = self._series_of(sample)
            match self._table[sample.name].kind:
                case Kind.COUNTER | Kind.CUMULATIVE:
                    series.increment(sample.value)
                case Kind.GAUGE:
                    series.set(sample.value)
                case Kind.HISTOGRAM:
                    for observation in sample.observations:
                        series.observe(observation)

    def _series_of(self, sample: Sample) -> Any:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        if key not in self._series:
            metric = self._table[sample.name]
            buckets = {"buckets": list(metric.buckets)} if metric.kind is Kind.HISTOGRAM else {}
            self._series[key] = self._families[sample.name].Metric(labels=sample.labels, **buckets)
        return self._series[key]
