"""vLLM under three schedulers: the tables of `bench.vllm_peers`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common.provenance import describe
from bench.report.measured import load_json
from bench.report.tables import markdown_table

COMMAND = "`.venv-vllm/bin/python -m bench.vllm_peers {options} --out bench/results/{name}`"
TITLES = {
    "vllm-peers.json": "vLLM under three schedulers",
    "vllm-peers-avx2.json": "vLLM under three schedulers, in float32 with AVX2 only",
}
ABOUT = """\
One vLLM, three schedulers, interleaved: its own `fcfs`, its own `priority`, and ours (`bros`) inside it. The SLO is
twice the 90th percentiles of real-time alone under `fcfs`. A request that did not end counts as missed. The table has
means over rounds."""

SUMMARY = """\
Measured: vLLM on two cores under its own schedulers and under ours. The SLO is twice what real-time gets alone. The
[whole table](../bench/results/measured.md#vllm-under-three-schedulers) has times and the cost of a step."""
OVERHEAD = """\
`schedule()` with {num_running} requests running, medians over the steps of {num_turns} turns of each. A step of the
model on the same cores empties the processor's caches, so every call after it is slower. Where a GPU computes, nothing
does."""


def vllm_sections(results: Path) -> list[str]:
    """Return a section for each result that is there."""
    return [part for name, title in TITLES.items() for part in _section(load_json(results / name), name, title)]


def _section(document: Mapping[str, Any] | None, name: str, title: str) -> list[str]:
    if document is None:
        return []
    slos, overhead = document["slos"], document["overhead"]
    facts = (
        f"SLO: {slos['ttft_s']:.2f} s to the first token, {1e3 * slos['tpot_s']:.0f} ms for each further one. Rates "
        f"are those named, times {document['scale']:.2f}."
    )
    about = f"{document['engine']}. {describe(document['provenance'])}"
    cost = [OVERHEAD.format(**overhead), _overhead_table(overhead)]
    options = "--rounds {rounds} --duration-s {duration_s:g}".format(**document["config"])
    command = COMMAND.format(options=options, name=name)
    return [f"## {title}", command, ABOUT, about, facts, _table(document["runs"]), *cost]


def vllm_summary(results: Path) -> list[str]:
    """Return the section of the page: a row for each load; nothing without results."""
    document = load_json(results / "vllm-peers.json")
    if document is None:
        return []
    runs, systems = document["runs"], ("fcfs", "priority", "bros")
    rows = []
    for load in dict.fromkeys(run["load"] for run in runs):
        by = {system: [run for run in runs if (run["load"], run["system"]) == (load, system)] for system in systems}
        kept = [_mean([run["rt_attainment"]["both"] for run in by[system]], 100.0, "{:.1f} %") for system in systems]
        rates = [_mean([run["be_requests_per_s"] for run in by[system]], 1.0, "{:.2f}") for system in systems]
        rows.append([load, " / ".join(kept), " / ".join(rates)])
    header = ["load", "RT in SLO, `fcfs` / `priority` / `bros`", "BE requests/s"]
    return ["## vLLM under three schedulers", SUMMARY, markdown_table(header, rows)]


def _overhead_table(overhead: Mapping[str, Any]) -> str:
    places = {"alone": "no model between two calls", "beside_model": "a step of the model on the same cores"}
    rows = [
        [words, *(f"{overhead[place][name]:.0f}" for name in ("vllm_us", "bros_us", "added_us"))]
        for place, words in places.items()
    ]
    return markdown_table(["between two calls", "vLLM's `fcfs`, µs", "`bros`, µs", "added, µs"], rows)


def _table(runs: Sequence[Mapping[str, Any]]) -> str:
    cells = {(run["load"], run["system"]): None for run in runs}
    header = ["load", "scheduler", "RT in SLO", "TTFT p50 / p99 s", "TPOT p50 / p99 ms", "BE requests/s", "BE tokens/s"]
    rows = [
        _row(load, system, [run for run in runs if (run["load"], run["system"]) == (load, system)])
        for load, system in cells
    ]
    return markdown_table(header, rows)


def _row(load: str, system: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        load,
        f"`{system}`",
        _mean([run["rt_attainment"]["both"] for run in runs], 100.0, "{:.1f} %"),
        f"{_of(runs, 'ttft_s', 'p50', 1.0, '{:.2f}')} / {_of(runs, 'ttft_s', 'p99', 1.0, '{:.2f}')}",
        f"{_of(runs, 'tpot_s', 'p50', 1e3, '{:.0f}')} / {_of(runs, 'tpot_s', 'p99', 1e3, '{:.0f}')}",
        _mean([run["be_requests_per_s"] for run in runs], 1.0, "{:.2f}"),
        _mean([run["be_tokens_per_s"] for run in runs], 1.0, "{:.0f}"),
    ]


def _of(runs: Sequence[Mapping[str, Any]], name: str, point: str, factor: float, form: str) -> str:
    return _mean([run[name][point] for run in runs], factor, form)


def _mean(values: Sequence[float | None], factor: float, form: str) -> str:
    present = [value for value in values if value is not None]
    return form.format(factor * statistics.fmean(present)) if present else "–"
