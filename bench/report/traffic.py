"""Traffic on which no policy was tuned: real-time alone and beside best-effort work, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

INTRODUCTION = """\
`python -m bench.study --traffic`: scenarios of `bench/scenarios`, simulated. No policy was tuned on them. Attainment is
the share of real-time requests that keep both objectives, in percent; BE is best-effort output tokens per second. Means
over {num_seeds} seeds."""
_HEADER = ("traffic", "RT alone", "`bros`", "`priority_tuned`", "BE `bros`", "BE `priority_tuned`")


def traffic_sections(results: Path) -> list[str]:
    """Return the section on untuned traffic, if there is a result."""
    study = load_json(results / "study-traffic.json")
    if study is None:
        return []
    num_seeds = len({run["scenario"]["seed"] for run in study["runs"]})
    return [
        "### Traffic without tuning",
        INTRODUCTION.format(num_seeds=num_seeds),
        describe(study["provenance"]),
        traffic_table(study["runs"]),
    ]


def traffic_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a row per scenario: attainment alone and beside best-effort work, and best-effort throughput."""
    names = list(dict.fromkeys(run["label"] for run in runs))
    return markdown_table(_HEADER, [_row(name, [run for run in runs if run["label"] == name]) for name in names])


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    alone = [run for run in runs if _is_alone(run)]
    beside = [[run for run in runs if run not in alone and run["scenario"]["policy"] == p] for p in _POLICIES]
    attained = [f"{100 * _mean(r['rt_attainment']['both'] for r in some):.2f}" for some in (alone, *beside)]
    return [
        name.replace("_", " "),
        *attained,
        *(f"{_mean(r['be_tokens_per_s'] for r in some):,.0f}" for some in beside),
    ]


_POLICIES = ("bros", "priority_tuned")


def _is_alone(run: Mapping[str, Any]) -> bool:
    scenario = run["scenario"]
    return not (scenario["be_outstanding"] or scenario["be_backlog"] or scenario["be_rate"] or scenario["be_trace"])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
