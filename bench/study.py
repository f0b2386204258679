"""Run the study at GPU scale: policies × models × loads × seeds, simulated, on all cores, resumable.

    python -m bench.study                 the telling part (`make study`, below 30 minutes on two cores)
    python -m bench.study --full          the whole grid (`make study-full`, many hours)

Each finished run is kept in a journal beside the result file, so an interrupted study goes on where it stopped. What
the journal or the result file has of the same simulation code is not run again; a commit that touches none of
`SIMULATION_CODE` costs nothing. `python -m bench.report` makes the document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from backend.policy.settings import POLICY_NAMES
from bench.provenance import provenance
from bench.scenario import Scenario
from bench.simulate import Simulation

RESULTS = Path(__file__).with_name("results")
# All that decides a run's outcome, relative to the checkout.
SIMULATION_CODE = (
    "kv/*.py",
    "backend/policy/*.py",
    "backend/executors/__init__.py",
    *(
        f"backend/{name}.py"
        for name in ("__init__", "clock", "committed", "engine", "errors", "plan", "request", "scheduler*")
    ),
    *(f"bench/{name}.py" for name in ("gpu_executor", "limit", "scenario", "score", "simulate", "stats", "workload")),
    "bench/step_models.*",
)
SEEDS = (0, 1, 2, 3, 4)
LOADS = (0.25, 0.5, 0.75, 1.0, 1.5)
LOOSE, TIGHT = (0.4, 0.2), (0.2, 0.05)  # (TTFT, TPOT) SLOs in seconds: the published ones, and tighter ones
# Real-time requests per second (ShareGPT lengths) that about fill the machine with no best-effort work: load 1.
RT_CAPACITY = {
    "opt13b-a100-tp2": 7.0,
    "opt30b-a100-tp4": 7.0,
    "llama8b-a100": 14.0,
    "llama8b-h100": 36.0,
    "llama70b-h100-tp4": 14.0,
    "llama70b-a100-tp8": 10.0,
}
BURST_CV = 5.0
KV_BOUND, GROUPED_QUERY = "opt13b-a100-tp2", "llama8b-a100"
ABLATIONS: dict[str, dict[str, Any]] = {
    "sharing off": {"sharing": False},
    "checkpoints off": {"checkpoints": False},
    "chunking off": {"chunked_prefill": False},
    "window off": {"adaptive_window": False},
    "sharing and checkpoints off": {"sharing": False, "checkpoints": False},
}
# A run begins empty; real-time requests that arrive in its first part are not scored.
_BASE = Scenario(be_outstanding=256, warmup_s=40.0, duration_s=120.0)


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation of the study: `group` says which question it answers, `load` is relative to RT_CAPACITY."""

    group: str
    scenario: Scenario
    label: str = ""
    load: float | None = None

    @property
    def key(self) -> str:
        return _key(self.group, self.label, self.scenario.to_json())


def telling_runs(seeds: Iterable[int] = SEEDS) -> Iterator[Run]:
    """One KV-bound and one grouped-query model under every load, all policies; ablations, a trace and bursts."""
    seeds = tuple(seeds)
    for seed in seeds:
        for pair in (KV_BOUND, GROUPED_QUERY):
            yield from _load_runs(pair, LOADS, LOOSE, seed)
        yield from _ablation_runs(KV_BOUND, seed)
    yield from _burst_runs(GROUPED_QUERY)
    yield from _trace_runs("llama8b-h100", seeds[:1])


def full_runs() -> Iterator[Run]:
    """Every model, load and SLO set, with the ablations of each."""
    for seed in SEEDS:
        for pair in RT_CAPACITY:
            for slos in (LOOSE, TIGHT):
                yield from _load_runs(pair, LOADS, slos, seed)
            yield from _ablation_runs(pair, seed)
    yield from _burst_runs(GROUPED_QUERY)
    for pair in ("llama8b-a100", "llama8b-h100", "llama70b-h100-tp4"):
        yield from _trace_runs(pair, SEEDS)


def _load_runs(pair: str, loads: Iterable[float], slos: tuple[float, float], seed: int) -> Iterator[Run]:
    for load in loads:
        scenario = replace(
            _BASE, pair=pair, rt_rate=load * RT_CAPACITY[pair], ttft_slo_s=slos[0], tpot_slo_s=slos[1], seed=seed
        )
        for policy in POLICY_NAMES:
            yield Run("load", replace(scenario, policy=policy), load=load)


def _ablation_runs(pair: str, seed: int) -> Iterator[Run]:
    scenario = replace(_BASE, pair=pair, rt_rate=0.5 * RT_CAPACITY[pair], seed=seed)
    for label, settings in ABLATIONS.items():
        yield Run("ablation", replace(scenario, settings=settings), label=label, load=0.5)


def _trace_runs(pair: str, seeds: Iterable[int]) -> Iterator[Run]:
    for seed in seeds:
        scenario = replace(_BASE, pair=pair, rt_trace="trace_azure_conv.csv", duration_s=240.0, seed=seed)
        for policy in POLICY_NAMES:
            yield Run("trace", replace(scenario, policy=policy))


def _burst_runs(pair: str) -> Iterator[Run]:
    scenario = replace(_BASE, pair=pair, rt_rate=0.5 * RT_CAPACITY[pair], rt_cv=BURST_CV)
    for policy in ("bros", "priority_tuned", "fcfs"):
        yield Run("burst", replace(scenario, policy=policy), load=0.5)


def simulation_code() -> str:
    """Return a digest of the files of `SIMULATION_CODE`."""
    root = Path(__file__).parents[1]
    paths = sorted(path for pattern in SIMULATION_CODE for path in root.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def execute(run: Run, source: Mapping[str, str]) -> dict[str, Any]:
    """Simulate one run; called in a worker process. `source` (commit and code digest) is noted in the entry."""
    simulation = Simulation(run.scenario)
    simulation.run()
    entry = {**source, "group": run.group, "label": run.label, "load": run.load, **simulation.result()}
    if run.group == "burst":
        entry["timeline"] = simulation.timeline()
    return entry


class Journal:
    """Results of finished runs by key: those of a result file, then one JSON line each, of which the last counts."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_suffix(".partial.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        published = json.loads(out.read_text())["runs"] if out.exists() else []
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        entries = [*published, *map(json.loads, lines)]
        self.entries: dict[str, dict[str, Any]] = {
            _key(entry["group"], entry["label"], entry["scenario"]): entry for entry in entries
        }

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Keep one result, on disk at once."""
        self.entries[key] = entry
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _key(group: str, label: str, scenario: Mapping[str, Any]) -> str:
    return json.dumps([group, label, scenario], sort_keys=True)


def run_study(runs: list[Run], out: Path, num_workers: int) -> None:
    """Execute what journal and result file lack of this code, and write `out`."""
    facts = provenance()
    source = {"commit": facts["commit"], "code": simulation_code()}
    journal = Journal(out)
    missing = [run for run in runs if journal.entries.get(run.key, {}).get("code") != source["code"]]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left:", TimeRemainingColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(num_workers) as pool:
        task = progress.add_task("study", total=len(runs), completed=len(runs) - len(missing))
        futures = {pool.submit(execute, run, source): run for run in missing}
        for future in as_completed(futures):
            journal.add(futures[future].key, future.result())
            progress.advance(task)
    entries = [journal.entries[run.key] for run in runs]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    out.write_text(f'{{"provenance": {json.dumps(facts)},\n"runs": [\n{lines}\n]}}\n')
    journal.path.unlink(missing_ok=True)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the whole grid instead of its telling part")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="seeds of the telling part (default: 5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--out", type=Path, help="default: bench/results/study.json, with --full study-full.json")
    arguments = parser.parse_args()
    runs = list(full_runs() if arguments.full else telling_runs(range(arguments.seeds)))
    out = arguments.out or RESULTS / ("study-full.json" if arguments.full else "study.json")
    run_study(runs, out, arguments.jobs)
    print(f"{len(runs)} runs in {out}; next: python -m bench.report", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
