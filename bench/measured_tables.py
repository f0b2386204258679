"""Tables of what was measured on the real server, the other engines beside it, and the simulator's error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.intervals import share_interval
from bench.provenance import describe
from bench.tables import markdown_table, mean_of, p50, p99, verdict

Run = Mapping[str, Any]
_MIXES = ("backlog", "mix_0.8_0.4", "mix_1.2_0.55", "rt_alone", "be_alone")
_ASKED = "1 s, 100 ms"
BE_BAR = 0.8  # of what BE does alone, less the real-time work
RT_BAR = 0.99
MEASURED = """\
SmolLM2-135M on the torch engine behind Triton; server, engine and load generator share the machine. KV pool of
{kv_tokens:,} tokens, {max_tokens_per_step} tokens a step. RT: Poisson, lognormal prompts (mean 160) and outputs (mean
64). BE: prompts U(512,1024), outputs U(32,128), as a backlog of {backlog} at time 0 or Poisson. RT asked for TTFT 1 s
and TPOT 100 ms; {scored_s:g} s are scored by arrival, unfinished requests are misses. The policies ran interleaved,
each on a server of its own, on the same seeds ({seeds})."""


def measured_sections(results: Path) -> list[str]:
    """Return the sections on the real server, as far as there are results."""
    sections: list[str] = []
    if (measured := load_json(results / "measured.json")) is not None:
        sections += _server_sections(measured, load_json(results / "peers.json"))
    if (error := load_json(results / "simulator_error.json")) is not None:
        sections += _error_sections(error)
    return sections


def load_json(path: Path) -> dict[str, Any] | None:
    """Return the document of a file, None where there is no file."""
    return json.loads(path.read_text()) if path.exists() else None


def _server_sections(measured: Mapping[str, Any], peers: Mapping[str, Any] | None) -> list[str]:
    runs = measured["runs"]
    setup = runs[0]["setup"]
    sections = [
        "## Measured, on the real server",
        MEASURED.format(
            backlog=max(run["setup"]["be_backlog"] for run in runs),
            scored_s=setup["duration_s"] - setup["warmup_s"],
            seeds=", ".join(str(seed) for seed in sorted({run["seed"] for run in runs})),
            **setup,
        ),
        describe(measured["provenance"]),
        _mix_table(runs),
        "### Against the bars",
        "\n".join(_bars(runs)),
    ]
    if peers is not None:
        rows = [[peer["engine"], peer["mix"], *peer["cells"]] for peer in peers["rows"]]
        sections += ["### Another engine on the same loads", peers["note"], markdown_table(peers["header"], rows)]
    return sections


def _mix_table(runs: Sequence[Run]) -> str:
    at = list(runs[0]["rt_attainment_at"])
    header = ["mix", "policy", "RT requests", *(f"met {slos}" for slos in at)]
    header += ["TTFT p50 / p99 s", "TPOT p50 / p99 ms", "BE req/s", "BE tok/s"]
    rows = []
    for mix in _MIXES:
        for policy in sorted({run["policy"] for run in runs}):
            group = _group(runs, mix, policy)
            if not group:
                continue
            num_rt = sum(run["num_rt"] for run in group)
            shares = [_pooled_attainment(group, slos) for slos in at] if num_rt else ["–"] * len(at)
            latencies = [
                f"{mean_of(group, p50('ttft_s'))} / {mean_of(group, p99('ttft_s'))}",
                f"{mean_of(group, p50('tpot_s'), 1e3)} / {mean_of(group, p99('tpot_s'), 1e3)}",
            ]
            be = [mean_of(group, lambda run: run["be_requests_per_s"]), mean_of(group, lambda r: r["be_tokens_per_s"])]
            rows.append([mix, policy, str(num_rt), *shares, *latencies, *be])
    return markdown_table(header, rows)


def _bars(runs: Sequence[Run]) -> list[str]:
    lines = []
    for mix in ("backlog", "mix_0.8_0.4", "mix_1.2_0.55"):
        group = _group(runs, mix, "bros")
        if group:
            hits, trials = _hits(group, _ASKED)
            word = verdict(hits >= RT_BAR * trials)
            lines.append(f"- {mix}: `bros` meets ({_ASKED}) for {hits} of {trials} (bar {RT_BAR:.0%}: {word})")
    backlog, alone = _group(runs, "backlog", "bros"), _group(runs, "be_alone", "bros")
    rt_alone = _group(runs, "rt_alone", "bros")
    if backlog and alone and rt_alone:
        rt_busy = sum(run["engine_busy_ratio"] for run in rt_alone) / len(rt_alone)
        left = _mean(alone, "be_tokens_per_s") * (1.0 - rt_busy)
        kept = _mean(backlog, "be_tokens_per_s") / left
        lines.append(
            f"- backlog: BE keeps {100 * kept:.0f} % of its alone-throughput less the RT work (bar {BE_BAR:.0%}: "
            f"{verdict(kept >= BE_BAR)}); RT alone keeps the engine busy for {100 * rt_busy:.0f} % of the time"
        )
    return lines


def _error_sections(error: Mapping[str, Any]) -> list[str]:
    header = ["load", "what", "measured", "simulated", "error"]
    rows = [
        [
            load["name"],
            what,
            f"{pair['measured']:.4g}",
            f"{pair['simulated']:.4g}",
            f"{100 * pair['error_ratio']:+.1f} %",
        ]
        for load in error["loads"]
        for what, pair in load["comparisons"].items()
    ]
    return [
        "### The simulator against the real server",
        "The same arrivals and lengths on the real server and in the simulator, whose step model was fitted to steps\n"
        f"of the real engine (held-out error {error['step_model']['heldout_error']['mean_pct']:.1f} %). "
        "Aimed at: TPOT within 10 %, TTFT within 20 %, at moderate load.",
        describe(error["provenance"]),
        markdown_table(header, rows),
    ]


def _group(runs: Sequence[Run], mix: str, policy: str) -> list[Run]:
    return [run for run in runs if run["setup"]["name"] == mix and run["policy"] == policy]


def _hits(group: Sequence[Run], slos: str) -> tuple[int, int]:
    hits = sum(round(run["rt_attainment_at"][slos]["both"] * run["num_rt"]) for run in group if run["num_rt"])
    return hits, sum(run["num_rt"] for run in group)


def _pooled_attainment(group: Sequence[Run], slos: str) -> str:
    """Share over all requests of all seeds, with Wilson's interval."""
    interval = share_interval(*_hits(group, slos))
    return f"{100 * interval.estimate:.1f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def _mean(group: Sequence[Run], name: str) -> float:
    return sum(float(run[name]) for run in group) / len(group)
