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
start. Each of these begins with one of many system prompts, which do not fit into the pool at once. "host" counts the
hits that came from the host pool; its part for prefixes has as many slots as the device. Both oracles are caches that
drop the least recently used block. "alone" has all slots; requests come in order of arrival, and are over at once.
"beside" has the slots that requests leave in this run, and requests begin, compute and end when they do here.
Requests and pool are {scale:g} of a GPU's ({num_requests} requests a run).
Means of seeds {seeds}; the brackets hold the lowest and the highest."""

Run = Mapping[str, Any]


def prefix_text(results: Path) -> str | None:
    """Return the table and what follows from it, or None without a result."""
    document = load_json(results / "prefix-sim.json")
    if document is None:
        return None
    runs = document["runs"]
    cells = list(dict.fromkeys((run["trace"], run["cache"]) for run in runs))
    oracles = ("host", "alone", "beside")
    header = ("trace", "cache", "RT hits", *oracles, "BE hits", *oracles, "RT in time", "BE requests/s")
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
        for name in ("hit_rate", "host_hit_rate", "oracle_hit_rate", "beside_hit_rate"):
            is_shown = runs[0]["hit_rate"]["rt"] is not None and (name != "host_hit_rate" or _has_host_hits(runs))
            cells.append(_spread([run[name][cls] for run in runs]) if is_shown else "")
    return [
        *cells,
        _spread([run["rt_attainment"] for run in runs]),
        _rate([run.get("be_requests_per_s") for run in runs]),
    ]


def _has_host_hits(runs: Sequence[Run]) -> bool:
    return any(rate for run in runs for rate in run["host_hit_rate"].values())


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
    gaps: dict[str, list[tuple[float, str]]] = {"oracle_hit_rate": [], "beside_hit_rate": []}
    losses, gains, ordered = [], [], list[float]()
    for trace in dict.fromkeys(run["trace"] for run in runs):
        ours, plain, none = (_of(runs, trace, cache) for cache in ("by class", "by last use", "none"))
        ordered += [_gain(*each) for each in zip(ours, _of(runs, trace, "by class, order of arrival"), strict=False)]
        for with_classes, without in zip(ours, none, strict=True):
            losses.append(without["rt_attainment"] - with_classes["rt_attainment"])
            for name, found in gaps.items():
                found.append((with_classes[name]["rt"] - with_classes["hit_rate"]["rt"], trace))
        for with_classes, last_use in zip(ours, plain, strict=False):  # `chat` has one class
            gains.append((with_classes["hit_rate"]["rt"] - last_use["hit_rate"]["rt"], trace))
    (alone, trace), (beside, other) = (max(found) for found in gaps.values())
    gain, where = max(gains)
    lost = 100 * max(0.0, *losses)
    return (
        f"Real-time hits are at most {100 * max(0.0, alone):.1f} points below the oracle's alone (on {trace}), "
        f"and at most {100 * max(0.0, beside):.1f} below the oracle's beside running requests (on {other}). "
        f"Eviction by class gains real-time up to {100 * gain:.1f} points over the last use alone (on {where}). "
        + _ordered(ordered)
        + (
            f"The share in time is at most {lost:.1f} points below that without a cache."
            if lost > 0
            else "The share in time is nowhere below that without a cache."
        )
    )
