"""What prefix caching finds in simulation, and the worth of eviction by class: a table of docs/kv.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

PREFIX_BEGIN, PREFIX_END = "<!-- prefix: written by `python -m bench.report` -->", "<!-- /prefix -->"
INTRODUCTION = """\
`python -m bench.prefix sim`, simulated: hits in percent of prompt tokens, and the share of real-time requests in time.
"chat" is multi-turn. "documents" asks about long texts, a few of them often, in both classes. "flood" is "chat" beside
best-effort prompts that share nothing. "jobs" is "chat" beside a file of best-effort requests that is there from the
start. Each of these begins with one of many system prompts, which do not fit into the pool at once. The oracle is a
cache of as many slots that drops the least recently used one. Running requests take nothing from it, and requests come
to it in order of arrival. Requests and pool are {scale:g} of a GPU's ({num_requests} requests a run).
Means of seeds {seeds}; the brackets hold the lowest and the highest."""

Run = Mapping[str, Any]


def prefix_text(results: Path) -> str | None:
    """Return the table and what follows from it, or None without a result."""
    document = load_json(results / "prefix-sim.json")
    if document is None:
        return None
    runs = document["runs"]
    cells = list(dict.fromkeys((run["trace"], run["cache"]) for run in runs))
    header = ("trace", "cache", "RT hits", "oracle", "BE hits", "oracle", "RT in time", "BE requests/s")
    rows = [[trace, cache, *_row(_of(runs, trace, cache))] for trace, cache in cells]
    introduction = INTRODUCTION.format(
        scale=document["scale"],
        num_requests=" to ".join(str(end(run["num_requests"] for run in runs)) for end in (min, max)),
        seeds=", ".join(str(seed) for seed in sorted({run["seed"] for run in runs})),
    )
    words = [introduction, markdown_table(header, rows), _verdict(runs), describe(document["provenance"])]
    return "\n\n".join(words)


def _of(runs: Sequence[Run], trace: str, cache: str) -> list[Run]:
    return sorted(
        (run for run in runs if (run["trace"], run["cache"]) == (trace, cache)), key=lambda run: int(run["seed"])
    )


def _row(runs: Sequence[Run]) -> list[str]:
    cells = []
    for cls in ("rt", "be"):
        for name in ("hit_rate", "oracle_hit_rate"):
            is_shown = name == "hit_rate" or runs[0]["hit_rate"]["rt"] is not None
            cells.append(_spread([run[name][cls] for run in runs]) if is_shown else "")
    return [
        *cells,
        _spread([run["rt_attainment"] for run in runs]),
        _rate([run.get("be_requests_per_s") for run in runs]),
    ]


def _rate(rates: Sequence[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    return f"{np.mean(known):.1f}" if known else ""


def _ordered(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    return f"Cached prefixes first: best-effort ends {min(ratios):.2f} to {max(ratios):.2f} times as many a second. "


def _gain(ours: Run, other: Run) -> float:
    return float(ours["be_requests_per_s"] / other["be_requests_per_s"])


def _spread(shares: Sequence[float | None]) -> str:
    known = [100 * share for share in shares if share is not None]
    return f"{np.mean(known):.1f} ({min(known):.1f} to {max(known):.1f})" if known else ""


def _verdict(runs: Sequence[Run]) -> str:
    """Say how far the oracle is, what the classes bring, and whether real-time ever loses."""
    gaps, losses, gains, ordered = [], [], [], list[float]()
    for trace in dict.fromkeys(run["trace"] for run in runs):
        ours, plain, none = (_of(runs, trace, cache) for cache in ("by class", "by last use", "none"))
        ordered += [_gain(*each) for each in zip(ours, _of(runs, trace, "by class, order of arrival"), strict=False)]
        for with_classes, without in zip(ours, none, strict=True):
            losses.append(without["rt_attainment"] - with_classes["rt_attainment"])
            gaps.append((with_classes["oracle_hit_rate"]["rt"] - with_classes["hit_rate"]["rt"], trace))
        for with_classes, last_use in zip(ours, plain, strict=False):  # `chat` has one class
            gains.append((with_classes["hit_rate"]["rt"] - last_use["hit_rate"]["rt"], trace))
    gap, trace = max(gaps)
    gain, where = max(gains)
    lost = 100 * max(0.0, *losses)
    return (
        f"Real-time hits are at most {100 * max(0.0, gap):.1f} points below the oracle's (on {trace}). "
        f"Eviction by class gains real-time up to {100 * gain:.1f} points over the last use alone (on {where}). "
        + _ordered(ordered)
        + (
            f"The share in time is at most {lost:.1f} points below that without a cache."
            if lost > 0
            else "The share in time is nowhere below that without a cache."
        )
    )
