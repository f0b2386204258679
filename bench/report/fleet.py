"""Fleets behind one frontend, simulated: a table of docs/many.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

BEGIN, END = "<!-- fleet: written by `python -m bench.report` -->", "<!-- /fleet -->"
FULL_BUSY = 0.9  # from this share of its cores on, a frontend is the bottleneck
_HEADER = ("replicas", "router", "frontend's cores", "busy", "RT in time", "BE tokens/s a replica")
INTRODUCTION = """\
`python -m bench.fleet`, simulated: each replica runs the production scheduler. The router follows Dynamo's rules for
prompts that share no prefix. A replica gets {rt_rate:g} real-time requests a second in bursts, and more best-effort
ones than it can do. A request costs the frontend {request_ms:.2f} ms of processor time, and an event of a stream
{event_us:.0f} µs, as measured on Dynamo 1.6.1. Real-time tokens are an event each. Best-effort tokens leave together,
twice a second."""


def fleet_text(results: Path) -> str | None:
    """Return the table and what follows from it, or None without a result."""
    document = load_json(results / "fleet.json")
    if document is None or "runs" not in document:
        return None
    measured = document["measured"]
    introduction = INTRODUCTION.format(
        rt_rate=document["rt_rate"], request_ms=measured["request_s"] * 1e3, event_us=measured["event_s"] * 1e6
    )
    groups: dict[tuple[int, str, int], list[Mapping[str, Any]]] = {}
    for run in document["runs"]:
        groups.setdefault((run["num_replicas"], run["router"], run["num_cores"]), []).append(run)
    rows = [_row(*key, group) for key, group in groups.items()]
    costs = f"The costs were measured at commit {measured['provenance']['commit']}, {measured['provenance']['date']}."
    return "\n\n".join(
        [introduction, markdown_table(_HEADER, rows), _verdict(groups), costs, describe(document["provenance"])]
    )


def _row(size: int, router: str, cores: int, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    attained = np.mean([run["rt_attainment"]["both"] for run in runs])
    tokens = np.mean([run["be_tokens_per_s"] for run in runs]) / size
    busy = f"{_busy(runs):.0%}" if cores else "-"
    return [str(size), router, str(cores) if cores else "costs nothing", busy, f"{attained:.1%}", f"{tokens:.0f}"]


def _busy(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([run["busy_ratio"] for run in runs]))


def _verdict(groups: Mapping[tuple[int, str, int], Sequence[Mapping[str, Any]]]) -> str:
    """Say how many replicas a core of the frontend carries, by the least busy frontend of the largest fleet."""
    size, router, cores = max((key for key in groups if key[2]), key=lambda key: (key[0], key[2]))
    needed = _busy(groups[size, router, cores]) * cores
    return f"At this load {size} replicas need {needed:.1f} cores: one core of a frontend carries {size / needed:.0f}."
