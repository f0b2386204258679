"""Ablations of the policy, as the tables of docs/algorithm.md: where each mechanism pays, and the deleted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.ablate_policy import MECHANISMS, NOTHING
from bench.report.measured import load_json
from bench.report.tables import markdown_table

BEGIN, END = "<!-- ablations: python -m bench.report -->", "<!-- end of ablations -->"
_HEADER = ("mechanism", "without it RT loses most", "without it BE loses most", "without it gains most")
_MIN_RT_POINTS, _MIN_BE_PERCENT = 0.05, 0.5  # less is no difference
_INTRODUCTION = """\
`python -m bench.ablate_policy` switches off one mechanism at a time. There are {num_runs} runs on {num_cells} cells of
traffic. RT is attainment in points, and BE is output tokens per second in percent. Differences are means over the seeds
that both runs have. One request of a cell is 0.1 to 0.3 points, so less is noise. Cells where BE got less than
{min_be:g} tokens/s count for RT only. Commits: {commits}."""
_MIN_BE_TOKENS_PER_S = 5.0
Differences = dict[str, tuple[float, float | None]]  # cell: RT in points, BE in percent


def ablations_text(results: Path) -> str | None:
    """Return the tables, or None without a result."""
    result = load_json(results / "policy-ablations.json")
    return None if result is None else _tables(result["runs"])


def _tables(runs: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in dict.fromkeys(run["mechanism"] for run in runs) if name != NOTHING]
    kept, deleted = [n for n in names if n in MECHANISMS], [n for n in names if n not in MECHANISMS]
    introduction = _INTRODUCTION.format(
        num_cells=len({run["cell"] for run in runs}),
        num_runs=len(runs),
        commits=", ".join(sorted({run["commit"] for run in runs})),
        min_be=_MIN_BE_TOKENS_PER_S,
    )
    parts = [introduction, markdown_table(_HEADER, [_row(runs, name) for name in kept])]
    if deleted:
        parts += ["Measured, and deleted:", markdown_table(_HEADER, [_row(runs, name) for name in deleted])]
    return "\n\n".join(parts)


def _row(runs: Sequence[Mapping[str, Any]], mechanism: str) -> tuple[str, ...]:
    cells = differences(runs, mechanism)
    with_be = {cell: be for cell, (_, be) in cells.items() if be is not None}
    by_rt = min(cells, key=lambda cell: cells[cell][0])
    by_be = min(with_be, key=lambda cell: with_be[cell]) if with_be else by_rt
    gain = max(cells, key=lambda cell: _gain(*cells[cell]))
    return (
        mechanism,
        _text(by_rt, *cells[by_rt]) if cells[by_rt][0] <= -_MIN_RT_POINTS else "–",
        _text(by_be, *cells[by_be]) if (cells[by_be][1] or 0.0) <= -_MIN_BE_PERCENT else "–",
        _text(gain, *cells[gain]) if _gain(*cells[gain]) > 0.0 else "–",
    )


def differences(runs: Sequence[Mapping[str, Any]], mechanism: str) -> Differences:
    """Return what each cell gains without `mechanism`."""
    found: Differences = {}
    complete = {(run["cell"], run["seed"], run["commit"]): run for run in runs if run["mechanism"] == NOTHING}
    without = [run for run in runs if run["mechanism"] == mechanism]
    for cell in dict.fromkeys(run["cell"] for run in runs):
        own = [(run, complete.get((cell, run["seed"], run["commit"]))) for run in without if run["cell"] == cell]
        pairs = [(run, other) for run, other in own if other is not None]
        if pairs:
            rt = float(np.mean([run["rt_attainment"] - other["rt_attainment"] for run, other in pairs]))
            be = [sum(pair[side]["be_tokens_per_s"] for pair in pairs) for side in (0, 1)]
            is_enough = be[1] >= _MIN_BE_TOKENS_PER_S * len(pairs)
            found[cell] = 100.0 * rt, 100.0 * (be[0] / be[1] - 1.0) if is_enough else None
    return found


def _gain(rt_points: float, be_percent: float | None) -> float:
    """Return how much is gained, where real-time loses nothing; a point of RT outweighs any BE."""
    if rt_points >= _MIN_RT_POINTS:
        return 1000.0 * rt_points
    is_gain = rt_points > -_MIN_RT_POINTS and be_percent is not None and be_percent >= _MIN_BE_PERCENT
    return be_percent if is_gain and be_percent is not None else 0.0


def _text(cell: str, rt_points: float, be_percent: float | None) -> str:
    be = "" if be_percent is None else f", BE {be_percent:+.1f} %"
    return f"{cell}: RT {rt_points:+.2f}{be}"
