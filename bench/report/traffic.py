"""Traffic on which no policy was tuned: real-time alone and beside best-effort work, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table
from bench.study import PRICED

INTRODUCTION = """\
`python -m bench.study --traffic`: scenarios of `bench/scenarios`, simulated. No policy was tuned on them. But one rule
([lending](../../docs/decisions/0008-lending.md)) was weighed on the last three. Attainment is the share of real-time
requests that keep both objectives, in percent; BE is best-effort output tokens per second. Means over {num_seeds}
seeds."""
PRICE = """\
A request that comes while a step runs waits for its end. Prompts that need nearly all of their TTFT SLO alone cannot
wait. Shorter steps keep more of them in time. But each step reads the weights, so best-effort work loses. The scheduler
setting `responsiveness_cap_s` chooses. On *{name}*, with RT alone at {alone:.2f} %:"""
_PRICE_HEADER = ("longest step beside BE", "RT in time", "BE output tokens/s", "of the first row")
_Run = Mapping[str, Any]
_HEADER = ("traffic", "RT alone", "`bros`", "`priority_tuned`", "BE `bros`", "BE `priority_tuned`")


def traffic_sections(results: Path) -> list[str]:
    """Return the section on untuned traffic, if there is a result."""
    study = load_json(results / "study-traffic.json")
    if study is None:
        return []
    num_seeds = len({run["scenario"]["seed"] for run in study["runs"]})
    runs = traffic_runs(study["runs"])
    return [
        "### Traffic without tuning",
        INTRODUCTION.format(num_seeds=num_seeds),
        describe(study["provenance"]),
        traffic_table(runs),
        *_price(runs, [run for run in study["runs"] if run["group"] == "price"]),
    ]


def traffic_runs(runs: Sequence[_Run]) -> list[_Run]:
    """Return those that compare real-time alone and beside best-effort work."""
    return [run for run in runs if run["group"] == "traffic"]


def _price(runs: Sequence[_Run], capped: Sequence[_Run]) -> list[str]:
    """Return what shorter steps bring and cost on one scenario, if it was run."""
    alone, default, _ = _groups([run for run in runs if run["label"] == PRICED])
    if not (capped and alone and default):
        return []
    labels = dict.fromkeys(run["label"] for run in reversed(capped))
    groups = {"by the SLOs (default)": default}
    groups |= {label: [run for run in capped if run["label"] == label] for label in labels}
    usual = _throughput(default)
    rows = [
        (label, f"{percent:.2f} %", f"{_throughput(group):,.0f}", f"{100 * _throughput(group) / usual:.0f} %")
        for (label, group), percent in zip(groups.items(), _attained(list(groups.values())), strict=True)
    ]
    words = PRICE.format(name=PRICED.replace("_", " "), alone=_attained([alone])[0])
    return [words, markdown_table(_PRICE_HEADER, rows)]


def traffic_table(runs: Sequence[_Run]) -> str:
    """Return a row per scenario: attainment alone and beside best-effort work, and best-effort throughput."""
    names = list(dict.fromkeys(run["label"] for run in runs))
    return markdown_table(_HEADER, [_row(name, [run for run in runs if run["label"] == name]) for name in names])


def worst_traffic(runs: Sequence[_Run]) -> tuple[str, list[float]]:
    """Return the scenario in which `bros` loses most beside best-effort work. With it comes the attainment in percent:
    alone, under `bros`, under `priority_tuned`."""
    names = {run["label"] for run in runs}
    attained = {name: _attained(_groups([run for run in runs if run["label"] == name])) for name in names}
    name = max(attained, key=lambda name: attained[name][0] - attained[name][1])
    return name.replace("_", " "), attained[name]


def _row(name: str, runs: Sequence[_Run]) -> list[str]:
    groups = _groups(runs)
    throughputs = [_throughput(group) for group in groups[1:]]
    return [
        name.replace("_", " "),
        *(f"{percent:.2f}" for percent in _attained(groups)),
        *(f"{throughput:,.0f}" for throughput in throughputs),
    ]


_POLICIES = ("bros", "priority_tuned")
_Groups = list[list[_Run]]  # runs of real-time alone, then of each policy


def _groups(runs: Sequence[_Run]) -> _Groups:
    alone = [run for run in runs if _is_alone(run)]
    return [alone, *([r for r in runs if r not in alone and r["scenario"]["policy"] == p] for p in _POLICIES)]


def _throughput(group: Sequence[_Run]) -> float:
    return _mean(run["be_tokens_per_s"] for run in group)


def _attained(groups: _Groups) -> list[float]:
    return [100.0 * _mean(run["rt_attainment"]["both"] for run in group) for group in groups]


def _is_alone(run: _Run) -> bool:
    scenario = run["scenario"]
    return not (scenario["be_outstanding"] or scenario["be_backlog"] or scenario["be_rate"] or scenario["be_trace"])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
