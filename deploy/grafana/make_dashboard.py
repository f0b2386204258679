"""Write the Grafana dashboard next to this file: `python deploy/grafana/make_dashboard.py`.

One tuple per panel; the layout follows from the order. Import `bros.json` into Grafana and choose a Prometheus source.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.colors import CLASS_COLORS

TARGET = Path(__file__).with_name("bros.json")
WIDTH, HEIGHT, PANELS_PER_ROW = 8, 8, 3
INSTANCE = 'instance=~"$instance"'
RATE = "[$__rate_interval]"
COLORS = [  # of series whose legend begins with the name of a class
    {
        "matcher": {"id": "byRegexp", "options": f"/^{name}\\b/"},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
    }
    for name, color in CLASS_COLORS.items()
]


@dataclass(frozen=True, slots=True)
class Panel:
    """One time series panel: `queries` maps legends to PromQL, `unit` is Grafana's name of it."""

    title: str
    unit: str
    queries: dict[str, str]
    is_stacked: bool = False


def quantile(share: float, metric: str, extra: str = "") -> str:
    """Return a quantile of a histogram over all instances chosen."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{INSTANCE}{extra}}}{RATE})))"


def attainment(slo: str) -> str:
    """Return the share of real-time requests that met an objective."""
    met = f'sum(rate(bros_slo_requests_total{{{INSTANCE}, slo="{slo}", met="true"}}{RATE}))'
    return f'{met} / sum(rate(bros_slo_requests_total{{{INSTANCE}, slo="{slo}"}}{RATE}))'


def latencies(metric: str, labels: str) -> dict[str, str]:
    """Return the median and two tails of a histogram."""
    return {f"p{share:g}": quantile(share / 100, metric, labels) for share in (50, 95, 99)}


def by(label: str, metric: str, is_rate: bool, labels: str = "") -> dict[str, str]:
    """Return one line per value of `label`."""
    series = f"{metric}{{{INSTANCE}{labels}}}"
    return {f"{{{{{label}}}}}": f"sum by ({label}) ({f'rate({series}{RATE})' if is_rate else series})"}


PANELS = (
    Panel("RT requests inside their SLO", "percentunit", {slo: attainment(slo) for slo in ("ttft", "tpot", "both")}),
    Panel("RT time to first token", "s", latencies("bros_time_to_first_token_seconds", ', class="rt"')),
    Panel("RT time per output token", "s", latencies("bros_time_per_output_token_seconds", ', class="rt"')),
    Panel("Tokens sent per second", "short", by("class", "bros_output_tokens_total", is_rate=True), is_stacked=True),
    Panel("RT requests in the engine", "short", by("state", "bros_requests", is_rate=False, labels=', class="rt"')),
    Panel("BE requests in the engine", "short", by("state", "bros_requests", is_rate=False, labels=', class="be"')),
    Panel("KV blocks", "short", by("state", "bros_kv_blocks", is_rate=False), is_stacked=True),
    Panel("KV slots", "short", by("state", "bros_kv_slots", is_rate=False), is_stacked=True),
    Panel(
        "Preempted requests per second, work done twice",
        "short",
        by("kind", "bros_preemptions_total", is_rate=True)
        | {"recomputed tokens": f"sum(rate(bros_recomputed_tokens_total{{{INSTANCE}}}{RATE}))"},
    ),
    Panel(
        "Step time and budget",
        "s",
        {f"p{share:g}": quantile(share / 100, "bros_step_duration_seconds") for share in (50, 99)}
        | {"budget of the last": f"min(bros_step_budget_seconds{{{INSTANCE}}} < Inf)"},
    ),
    Panel(
        "Tokens per step",
        "short",
        {
            "{{class}}": f"sum by (class) (rate(bros_step_tokens_total{{{INSTANCE}}}{RATE}))"
            f" / ignoring (class) group_left () sum(rate(bros_steps_total{{{INSTANCE}}}{RATE}))",
        },
    ),
    Panel(
        "Error of the latency model", "percentunit", {"{{instance}}": f"bros_latency_model_error_ratio{{{INSTANCE}}}"}
    ),
    Panel(
        "Requests ended per second",
        "reqps",
        {
            "{{class}} {{outcome}}": f"sum by (class, outcome) (rate(bros_requests_total{{{INSTANCE}}}{RATE})) > 0",
        },
    ),
    Panel("RT time in the queue", "s", latencies("bros_queue_duration_seconds", ', class="rt"')),
    Panel("Engine takes requests", "short", {"{{instance}}": f"bros_engine_ready{{{INSTANCE}}}"}),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "title": "BROS",
        "uid": "bros",
        "tags": ["llm", "triton"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "type": "query",
                    "datasource": source,
                    "query": "label_values(bros_engine_ready, instance)",
                    "includeAll": True,
                    "multi": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": [render(index, panel, source) for index, panel in enumerate(PANELS)],
    }


def render(index: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    """Return one panel in Grafana's JSON model."""
    row, column = divmod(index, PANELS_PER_ROW)
    custom = {
        "fillOpacity": 30 if panel.is_stacked else 0,
        "stacking": {"mode": "normal" if panel.is_stacked else "none"},
    }
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": COLORS},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main() -> None:
    """Write the dashboard."""
    TARGET.write_text(json.dumps(dashboard(), indent=2) + "\n")


if __name__ == "__main__":
    main()
