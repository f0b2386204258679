"""Tables of the measurements on the real server, of other engines on the same loads, and of the simulator's error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common.intervals import share_interval
from bench.common.provenance import describe
from bench.report.tables import markdown_table, mean_of, p50, p99, verdict

Run = Mapping[str, Any]
_MIXES = ("backlog", "mix_0.8_0.4", "mix_1.2_0.55", "rt_alone", "be_alone")
ASKED = "1 s, 100 ms"
BE_BAR = 0.8  # of what BE does alone, less the real-time work
RT_BAR = 0.99
SIMULATOR_BARS = {"TPOT": 0.1, "TTFT": 0.2}
MEASURED = """\
- Model: SmolLM2-135M on the torch engine behind Triton. Server, engine and load generator share the machine.
- Limits: a KV pool of {kv_tokens:,} tokens, {max_tokens_per_step} tokens a step.
- RT: Poisson arrivals, lognormal prompts (mean 160) and outputs (mean 64), TTFT ≤ 1 s, TPOT ≤ 100 ms.
- BE: prompts U(512,1024), outputs U(32,128), as a backlog of {backlog} at time 0 or Poisson.
- Scoring: {scored_s:g} s by arrival; an unfinished request is a miss.
- Runs: the policies ran interleaved on the same seeds ({seeds}), each on a server of its own."""
SIMULATOR_ERROR = """\
The real server and the simulator get the same arrivals and lengths; all seeds ({seeds}) are pooled. The simulator
uses a table of step times over tokens and a mean *delivery* time. Delivery is the client's time to the first token
beyond the engine's. Both are fitted to the other runs of this table, never to the simulated run itself. In
brackets: the 95 % interval over requests (bootstrap; both sides of a request are drawn together). With a few dozen
requests, one long prompt moves p90."""
STEP_ERRORS = """\
This table shows how well the other runs predict the steps of a run: the mean absolute error of a step, and the error of
the sum of all steps. *One knee* is the roofline of the study, fitted to the same steps. *foreign cores* is the load of
other processes just before the run."""


def measured_sections(results: Path) -> list[str]:
    """Return the sections on the real server, as far as there are results."""
    sections: list[str] = []
    if (measured := load_json(results / "measured.json")) is not None:
        sections += _server_sections(measured, load_json(results / "peers.json"))
    if (error := load_json(results / "simulator_error.json")) is not None:
        sections += _error_sections(error)
    return sections


def measured_bars(results: Path) -> list[str]:
    """Return the bars of the real server, the results, and the verdicts."""
    measured = load_json(results / "measured.json")
    return [] if measured is None else _bars(measured["runs"])


def by_policy(results: Path, cell: Callable[[Sequence[Run]], str]) -> str | None:
    """Return a table of mixes by policies with `cell` of the runs of each; None without results."""
    if (measured := load_json(results / "measured.json")) is None:
        return None
    runs = measured["runs"]
    policies = sorted({run["policy"] for run in runs})
    groups = {mix: [_group(runs, mix, policy) for policy in policies] for mix in _MIXES}
    rows = [[mix, *(cell(group) if group else "–" for group in row)] for mix, row in groups.items()]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    return markdown_table(["load", *(f"`{policy}`" for policy in policies)], rows)


def asked_attainment(group: Sequence[Run]) -> str:
    """Return the share of real-time requests that kept both objectives, with the counts."""
    hits, trials = _hits(group, ASKED)
    return f"{100 * hits / trials:.0f} % ({hits} of {trials})" if trials else "–"


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
            hits, trials = _hits(group, ASKED)
            word = verdict(hits >= RT_BAR * trials)
            lines.append(f"- {mix}: `bros` meets ({ASKED}) for {hits} of {trials} (bar {RT_BAR:.0%}: {word})")
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
    header = ["load", "RT requests", "what", "measured", "simulated", "error", "bar"]
    rows = [
        [
            load["name"],
            str(load["num_rt"]),
            what,
            f"{pair['measured']:.4g}",
            f"{pair['simulated']:.4g}",
            "{:+.1f} % [{:+.0f}, {:+.0f}]".format(*(100 * x for x in (pair["error_ratio"], *pair["error_interval"]))),
            _error_bar(what, pair["error_ratio"]),
        ]
        for load in error["loads"]
        for what, pair in load["comparisons"].items()
    ]
    return [
        "### The simulator against the real server",
        SIMULATOR_ERROR.format(seeds=", ".join(map(str, error["seeds"]))),
        describe(error["provenance"]),
        markdown_table(header, rows),
        STEP_ERRORS,
        _step_error_table(error["loads"]),
    ]


def _error_bar(what: str, error_ratio: float) -> str:
    bar = SIMULATOR_BARS[what.partition(" ")[0]]
    return f"{100 * bar:g} %: {verdict(abs(error_ratio) <= bar)}"


def _step_error_table(loads: Sequence[Mapping[str, Any]]) -> str:
    header = [
        "load",
        "seed",
        "steps",
        "table: a step, all",
        "one knee: a step, all",
        "delivery ms, measured / simulated",
        "foreign cores",
    ]
    rows = []
    for load in loads:
        for run in load["runs"]:
            errors = [
                f"{run[of]['mean_pct']:.1f} %, {run[of]['sum_pct']:+.1f} %" for of in ("table_error", "roofline_error")
            ]
            delivery = f"{1e3 * run['delivery_s']['measured']:.1f} / {1e3 * run['delivery_s']['simulated']:.1f}"
            rows.append(
                [
                    load["name"],
                    str(run["seed"]),
                    str(run["num_steps"]),
                    *errors,
                    delivery,
                    f"{run['foreign_cores']:.2f}",
                ]
            )
    return markdown_table(header, rows)


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
