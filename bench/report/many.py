"""Many replicas behind Dynamo's frontend: the tables of docs/many.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import describe
from bench.many import WRONG
from bench.report.measured import load_json
from bench.report.tables import markdown_table, verdict

BEGIN, END = "<!-- many: written by `python -m bench.report` -->", "<!-- /many -->"
BE_BAR = 0.9  # of the best-effort tokens of one engine with all of the capacity
_HEADER = ("router", "RT in time", "BE tokens/s", "of the limit's", "lost", "missing", "double", "worker back after")
INTRODUCTION = """\
`python -m bench.many`: {replicas} simulated engines behind Dynamo's real frontend, for {duration_s:g} s. Real-time
requests come in bursts, {rt_rate:g} a second on average. Their objectives are {ttft_s:g} s to the first token and
{tpot_ms:g} ms for each further one. Best-effort requests are more than the engines can do. One engine is {slowness:g}
times as slow as the others, and the worker of another is killed half way. The limit is one engine with the capacity of
all. Means over {seeds}; lost streams and wrong tokens are sums. Client, frontend, workers and engines shared
the machine's cores."""
PREFIXES = """\
`python -m bench.many_prefixes`: prompts that begin alike, {replicas} engines with prefix caches of {kv_tokens} tokens
each, {duration_s:g} s. {num_talks} conversations send all that was said before with each turn, and pause for
{think_s:g} s on average. Best-effort requests come {job_rate:g} a second, each with one of {num_systems} system prompts
of {system_tokens} tokens and {own_tokens} tokens of its own. Hits are prompt tokens that an engine had cached, of all
prompt tokens of answered requests. Predicted: the router assumes that engines keep the prompts it sent. Events: the
workers tell it what their caches hold. Means over {seeds}."""
_PREFIX_HEADER = ("router", "hits", "RT hits", "BE hits", "RT in time", "BE tokens/s", "lost", "missing", "double")


def many_text(results: Path) -> str | None:
    """Return tables and verdicts, or None without a result."""
    document = load_json(results / "many.json")
    if document is None:
        return None
    slos = document["slos"]
    introduction = INTRODUCTION.format(
        **{key: document[key] for key in ("replicas", "duration_s", "rt_rate", "slowness")},
        ttft_s=slos["ttft_slo_s"],
        tpot_ms=slos["tpot_slo_s"] * 1e3,
        seeds=_seeds(document["runs"]),
    )
    sections = [introduction]
    for has_faults, title in ((True, "One slow, one killed:"), (False, "All alike, none killed:")):
        runs = [run for run in document["runs"] if run["has_faults"] == has_faults]
        if runs:
            sections += [title, markdown_table(_HEADER, _rows(runs)), _bars(runs)]
    sections.append(describe(document["provenance"]))
    if "prefixes" in document:
        sections += _prefixes(document["prefixes"])
    return "\n\n".join(sections)


def _prefixes(part: Mapping[str, Any]) -> list[str]:
    """Return what routing by prefix brings."""
    runs = part["runs"]
    facts = {key: part[key] for key in ("replicas", "kv_tokens", "duration_s")} | part["sizes"]
    introduction = PREFIXES.format(**facts, seeds=_seeds(runs))
    rows = [_prefix_row(name, group) for name, group in _by_name(runs).items()]
    return [introduction, markdown_table(_PREFIX_HEADER, rows), describe(part["provenance"])]


def _prefix_row(name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    hits = [_share([run["hits"][kind] for run in runs]) for kind in ("both", "rt", "be")]
    sums = [str(sum(run[key] for run in runs)) for key in WRONG[:3]]
    return [name, *hits, f"{_attained(runs):.1%}", f"{_mean(runs, 'be_tokens_per_s'):.0f}", *sums]


def _rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    limit_tokens = _mean([run for run in runs if run["is_limit"]], "be_tokens_per_s")
    return [_row(name, group, limit_tokens) for name, group in _by_name(runs).items()]


def _row(name: str, runs: Sequence[Mapping[str, Any]], limit_tokens: float) -> list[str]:
    tokens = _mean(runs, "be_tokens_per_s")
    deaths = [run["death"]["away_s"] for run in runs if run["death"] is not None]
    sums = [str(sum(run[key] for run in runs)) for key in WRONG[:3]]
    of_limit = f"{tokens / limit_tokens:.0%}" if limit_tokens else "-"
    back = f"{max(deaths):.1f} s" if deaths else "-"
    return [name, f"{_attained(runs):.1%}", f"{tokens:.0f}", of_limit, *sums, back]


def _bars(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say whether nothing is lost or wrong, and whether the best router comes near the limit."""
    num_wrong = sum(run[key] for run in runs for key in WRONG)
    lines = [f"- Lost streams and wrong tokens: {num_wrong} (bar: 0: {verdict(num_wrong == 0)})"]
    pauses_s = [pause for run in runs if run["death"] is not None for pause in run["death"]["pauses_s"]]
    if pauses_s:
        longest = f"The longest pause of {len(pauses_s)} real-time streams at a kill: {max(pauses_s):.2f} s"
        lines.append(f"- {longest}")
    groups = _by_name(runs)
    limit = [run for run in runs if run["is_limit"]]
    others = {name: group for name, group in groups.items() if not group[0]["is_limit"]}
    if not limit or not others:
        return "\n".join(lines)
    name, best = max(others.items(), key=lambda item: (round(_attained(item[1]), 2), _mean(item[1], "be_tokens_per_s")))
    ratio = _mean(best, "be_tokens_per_s") / _mean(limit, "be_tokens_per_s")
    is_met = ratio >= BE_BAR and _attained(best) >= _attained(limit) - 0.01
    words = (
        f"{ratio:.0%} of the limit's best-effort tokens, {_attained(best):.1%} in time beside {_attained(limit):.1%}"
    )
    lines.append(f"- Best router, {name}: {words} (bar: {BE_BAR:.0%} at equal attainment: {verdict(is_met)})")
    return "\n".join(lines)


def _seeds(runs: Sequence[Mapping[str, Any]]) -> str:
    num_seeds = len({run["seed"] for run in runs})
    return "one seed" if num_seeds == 1 else f"{num_seeds} seeds"


def _share(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{np.mean(known):.1%}" if known else "-"


def _by_name(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["name"], []).append(run)
    return groups


def _attained(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([run["rt_attainment"]["both"] or 0.0 for run in runs]))


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([run[key] for run in runs])) if runs else 0.0
