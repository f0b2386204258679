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


def worst_traffic(runs: Sequence[Mapping[str, Any]]) -> tuple[str, list[float]]:
    """Return the scenario in which `bros` loses most beside best-effort work. With it comes the attainment in percent:
    alone, under `bros`, under `priority_tuned`."""
    names = {run["label"] for run in runs}
    attained = {name: _attained(_groups([run for run in runs if run["label"] == name])) for name in names}
    name = max(attained, key=lambda name: attained[name][0] - attained[name][1])
    return name.replace("_", " "), attained[name]


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    groups = _groups(runs)
    throughputs = [_mean(run["be_tokens_per_s"] for run in group) for group in groups[1:]]
    return [
        name.replace("_", " "),
        *(f"{percent:.2f}" for percent in _attained(groups)),
        *(f"{throughput:,.0f}" for throughput in throughputs),
    ]


_POLICIES = ("bros", "priority_tuned")
_Groups = list[list[Mapping[str, Any]]]  # runs of real-time alone, then of each policy


def _groups(runs: Sequence[Mapping[str, Any]]) -> _Groups:
    alone = [run for run in runs if _is_alone(run)]
    return [alone, *([r for r in runs if r not in alone and r["scenario"]["policy"] == p] for p in _POLICIES)]


def _attained(groups: _Groups) -> list[float]:
    return [100.0 * _mean(run["rt_attainment"]["both"] for run in group) for group in groups]


def _is_alone(run: Mapping[str, Any]) -> bool:
    scenario = run["scenario"]
    return not (scenario["be_outstanding"] or scenario["be_backlog"] or scenario["be_rate"] or scenario["be_trace"])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
