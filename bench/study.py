"""Run the study at GPU scale: policies × models × loads × seeds, simulated, on all cores, resumable.

    python -m bench.study                 the telling part (`make study`, about 20 minutes on two cores)
    python -m bench.study --full          the whole grid (`make study-full`, some hours)

A journal beside the result file keeps each finished run, so an interrupted study resumes. A run of the same simulation
code is not repeated if a journal or result file of that folder has it. The grid thus takes over its telling part. A
commit that touches none of `SIMULATION_CODE` repeats nothing; one that touches a policy's own modules repeats that
policy's runs. `python -m bench.report` makes the documents.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import gc
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from backend.core.numbers import positive, whole
from backend.policy.settings import POLICY_NAMES
from bench.common.command import as_command
from bench.common.provenance import provenance
from bench.common.workers import worker_processes
from bench.sim.scenario import Scenario
from bench.simulate import Simulation

RESULTS = Path(__file__).with_name("results")
# All that decides a run's outcome, relative to the checkout. What errors say decides nothing.
SIMULATION_CODE = (
    "kv/*.py",
    "backend/__init__.py",
    "backend/core/[!e]*.py",
    "backend/core/executor.py",
    "backend/engine/*.py",
    "backend/executors/__init__.py",
    "backend/policy/**/*.py",
    "bench/simulate.py",
    "bench/sim/*.py",
    "bench/sim/step_models.json",
    *(f"bench/common/{name}.py" for name in ("__init__", "score", "stats", "workload")),
)
# Modules of backend/policy that decide the runs of these policies alone: glob -> policies.
_RUNNING_FIRST = ("fcfs", "priority", "round_robin")
OWN_MODULES = {
    "bros/*": ("bros",),
    "baselines/bros_paper": ("bros_paper",),
    "baselines/priority_tuned": ("priority_tuned",),
    "baselines/round_robin": ("round_robin",),
    "baselines/running_first": _RUNNING_FIRST,
    "baselines/tgi": ("tgi",),
}
# Policies that look at no SLO: their runs under several SLO sets are one simulation, scored several times.
SLO_BLIND = (*_RUNNING_FIRST, "tgi")
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
KV_BOUND_PAIRS = (KV_BOUND, "opt30b-a100-tp4")  # multi-head attention: KV slots run out before batch slots do
ABLATIONS: dict[str, dict[str, Any]] = {
    "sharing off": {"sharing": False},
    "checkpoints off": {"checkpoints": False},
    "chunking off": {"chunked_prefill": False},
    "sharing and checkpoints off": {"sharing": False, "checkpoints": False},
}
# Scenarios by name (bench/scenarios). No policy was tuned on them. But lending was weighed on the last three.
TRAFFIC = (
    "heavy_tail",
    "bursty_cv2",
    "bursty_cv4",
    "bursty_cv8",
    "on_off",
    "few_rt",
    "mostly_rt",
    "mixed_slos",
    "long_be",
    "be_deadlines",
    "few_slots",
    "azure_70b",
    "azure_8b",
    "tight_70b",
)
# What RT in time costs BE: the longest step beside BE, in seconds, on the traffic where BE costs RT most.
PRICED, STEP_CAPS_S = "azure_70b", (0.05, 0.07, 0.09)
SHARING_BLOCK_SIZES = (16, 32, 64, 128)
# Pools in which slots run out before batch slots do: 50 to 80 requests of each length.
SHARING_LENGTHS: dict[str, dict[str, Any]] = {
    "short": {"rt_lengths": "short", "be_lengths": "short", "rt_rate": 20.0, "kv_tokens": 4096},
    "long": {"rt_lengths": "lengths_sharegpt.csv", "be_lengths": "paper_be", "rt_rate": 3.5},
}
_TELL_S = 10.0  # from one line to the next, where no bar is drawn
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# A run begins empty, and its first part is not scored. The number of real-time requests takes 70 s to settle on the
# slowest pair. Until then throughput depends on the requests begun early, while the machine fills.
_BASE = Scenario(be_outstanding=256, warmup_s=80.0, duration_s=160.0)


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


def full_runs(seeds: Sequence[int] = SEEDS) -> list[Run]:
    """Every model, load and SLO set, with the ablations of each, on `seeds`; and the telling part on all of its own."""
    return list({run.key: run for run in (*telling_runs(), *_grid_runs(seeds))}.values())


def traffic_runs(seeds: Iterable[int] = SEEDS) -> Iterator[Run]:
    """Traffic that nobody tuned for: real time alone, and beside best-effort work under two policies."""
    for seed in seeds:
        for name in TRAFFIC:
            scenario = _traffic(name, seed)
            yield Run("traffic", scenario.without_be(), label=name)
            for policy in ("bros", "priority_tuned"):
                yield Run("traffic", replace(scenario, policy=policy), label=name)
        for cap_s in STEP_CAPS_S:
            scenario = replace(_traffic(PRICED, seed), settings={"responsiveness_cap_s": cap_s})
            yield Run("price", scenario, label=f"{cap_s:g} s")


def _traffic(name: str, seed: int) -> Scenario:
    return replace(Scenario.named(name), warmup_s=40.0, duration_s=200.0, seed=seed)


def sharing_runs(seeds: Iterable[int] = SEEDS) -> Iterator[Run]:
    """Blocks that a real-time and a best-effort request share, against blocks of one owner, in the same pool."""
    for seed in seeds:
        for pair in KV_BOUND_PAIRS:
            for label, lengths in SHARING_LENGTHS.items():
                for block_size in SHARING_BLOCK_SIZES:
                    base = replace(_BASE, pair=pair, seed=seed, block_size=block_size, warmup_s=10.0, duration_s=30.0)
                    scenario = replace(base, **lengths)
                    for sharing in (True, False):
                        yield Run("sharing", replace(scenario, settings={"sharing": sharing}), label=label)


def _grid_runs(seeds: Sequence[int]) -> Iterator[Run]:
    for seed in seeds:
        for pair in RT_CAPACITY:
            for slos in (LOOSE, TIGHT):
                yield from _load_runs(pair, LOADS, slos, seed)
            yield from _ablation_runs(pair, seed)
    yield from _burst_runs(GROUPED_QUERY)
    for pair in ("llama8b-a100", "llama8b-h100", "llama70b-h100-tp4"):
        yield from _trace_runs(pair, seeds)


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
        scenario = replace(
            _BASE, pair=pair, rt_trace="trace_azure_conv.csv", warmup_s=40.0, duration_s=240.0, seed=seed
        )
        for policy in POLICY_NAMES:
            yield Run("trace", replace(scenario, policy=policy))


def _burst_runs(pair: str) -> Iterator[Run]:
    scenario = replace(_BASE, pair=pair, rt_rate=0.5 * RT_CAPACITY[pair], rt_cv=BURST_CV)
    for policy in ("bros", "priority_tuned", "fcfs"):
        yield Run("burst", replace(scenario, policy=policy), load=0.5)


def own_modules(pattern: str) -> Iterator[Path]:
    """Yield the modules that an entry of `OWN_MODULES` names."""
    return (Path(__file__).parents[1] / "backend" / "policy").glob(pattern + ".py")


@cache
def simulation_code(policy: str) -> str:
    """Return a digest of what decides the runs of `policy`: `SIMULATION_CODE` but for other policies' own modules, and
    but for comments, docstrings and layout."""
    root = Path(__file__).parents[1]
    foreign = {path for pattern, owners in OWN_MODULES.items() if policy not in owners for path in own_modules(pattern)}
    paths = sorted({path for pattern in SIMULATION_CODE for path in root.glob(pattern)} - foreign)
    return hashlib.sha256("\0".join(map(_meaning, paths)).encode()).hexdigest()[:12]


@cache
def _meaning(path: Path) -> str:
    """Return the text of a file; of Python without what changes no result."""
    text = path.read_text()
    return ast.unparse(_Undocumented().visit(ast.parse(text))) if path.suffix == ".py" else text


class _Undocumented(ast.NodeTransformer):
    """Replaces docstrings, which are expressions without effect."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if is_text else node


def execute(runs: Sequence[Run], source: Mapping[str, str]) -> list[dict[str, Any]]:
    """Simulate runs that differ in nothing but how they are scored; called in a worker process. `source` (commit and
    code digest) is noted in each entry."""
    gc.collect()  # the last simulation, which is full of cycles
    simulation = Simulation(runs[0].scenario)
    simulation.run()
    return [_entry(run, simulation.judged_by(run.scenario.slos), source) for run in runs]


def _entry(run: Run, simulation: Simulation, source: Mapping[str, str]) -> dict[str, Any]:
    entry = {**source, "group": run.group, "label": run.label, "load": run.load, **simulation.result()}
    if run.group == "burst":
        entry["timeline"] = simulation.timeline()
    return entry


def simulations(runs: Iterable[Run]) -> list[list[Run]]:
    """Group the runs that are one simulation, in the order of execution.

    The order is seed by seed, so that a study that ends early has whole seeds. Runs of minutes, the published algorithm
    near overload, come last in each seed.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        scenario = run.scenario
        if scenario.policy in SLO_BLIND:
            scenario = replace(scenario, ttft_slo_s=LOOSE[0], tpot_slo_s=LOOSE[1])
        found.setdefault(_key(run.group, run.label, scenario.to_json()), []).append(run)
    return sorted(found.values(), key=lambda same: (same[0].scenario.seed, _is_slow(same[0])))


def _is_slow(run: Run) -> bool:
    return run.scenario.policy == "bros_paper" and (run.load or 0.0) >= 1.0


class Journal:
    """Results of finished runs by key: those of the result files, then of journals, one JSON line each. The last of the
    code asked for counts."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_suffix(".partial.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        for path in _own_last(out.parent.glob("study*.json"), out):
            self._take(json.loads(path.read_text())["runs"])
        for path in _own_last(out.parent.glob("study*.partial.jsonl"), self.path):
            self._take(map(json.loads, _whole_lines(path)))
        if self.path.exists():
            self.path.write_text("".join(_whole_lines(self.path)))

    def get(self, run: Run) -> dict[str, Any] | None:
        """Return the result of `run` under the present code, if it is there."""
        return self._entries.get((run.key, simulation_code(run.scenario.policy)))

    def add(self, entry: dict[str, Any]) -> None:
        """Keep one result, on disk at once."""
        self._take([entry])
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _take(self, entries: Iterable[dict[str, Any]]) -> None:
        for entry in entries:
            self._entries[_key(entry["group"], entry["label"], entry["scenario"]), entry["code"]] = entry


def _own_last(paths: Iterable[Path], own: Path) -> list[Path]:
    return [*sorted(set(paths) - {own}), *([own] if own.exists() else ())]


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a journal, without one that is being written, or was when its study was killed."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _key(group: str, label: str, scenario: Mapping[str, Any]) -> str:
    return json.dumps([group, label, scenario], sort_keys=True)


def run_study(runs: list[Run], out: Path, num_workers: int, limit_s: float | None = None) -> int:
    """Execute the runs that journals and result files of this code lack, for at most `limit_s`; write all to `out`.

    Return the number of missing runs.
    """
    facts = provenance()
    journal = Journal(out)
    missing = [run for run in runs if journal.get(run) is None]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left:", TimeRemainingColumn())
    try:
        with Progress(*columns) as progress, worker_processes(num_workers, _start_worker) as pool:
            task = progress.add_task("study", total=len(runs), completed=len(runs) - len(missing))
            tell_s = time.monotonic()
            futures = [pool.submit(execute, same, _source(same[0], facts)) for same in simulations(missing)]
            for future in as_completed(futures, limit_s):
                for entry in future.result():
                    journal.add(entry)
                    progress.advance(task)
                if not progress.console.is_terminal and time.monotonic() > tell_s:  # no bar is drawn in a file
                    tell_s = time.monotonic() + _TELL_S
                    print(f"{progress.tasks[0].completed:,.0f} of {len(runs):,} runs", file=sys.stderr, flush=True)
    except TimeoutError:
        pass  # unfinished simulations are lost
    except KeyboardInterrupt:
        print(f"the finished runs are in {journal.path}; the same command goes on from there", file=sys.stderr)
        raise
    entries = [entry for entry in map(journal.get, runs) if entry is not None]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    out.write_text(f'{{"provenance": {json.dumps(facts)},\n"runs": [\n{lines}\n]}}\n')
    journal.path.unlink(missing_ok=True)
    return len(runs) - len(entries)


def _source(run: Run, facts: Mapping[str, Any]) -> dict[str, str]:
    return {"commit": facts["commit"], "code": simulation_code(run.scenario.policy)}


def _start_worker() -> None:
    """Let a worker end with its study, even a killed one, and collect garbage between two simulations only.

    Within a simulation there is little garbage, and the search for it takes a tenth of the time.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.disable()


_PARTS: Mapping[str | None, Callable[[Sequence[int]], Iterable[Run]]] = {
    None: telling_runs,
    "full": full_runs,
    "traffic": traffic_runs,
    "sharing": sharing_runs,
}
_WORDS = {
    "full": "the whole grid",
    "traffic": "traffic that nobody tuned for",
    "sharing": "blocks of two owners against blocks of one, by block size",
}


@as_command
def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_mutually_exclusive_group()
    for name, words in _WORDS.items():
        parts.add_argument(f"--{name}", action="store_const", const=name, dest="part", help=f"{words}, instead")
    parser.add_argument(
        "--seeds",
        type=whole(),
        default=len(SEEDS),
        help="seeds of each run; with --full, of those beyond the telling part (default: 5)",
    )
    parser.add_argument("--jobs", type=whole(), default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--out", type=Path, help="default: bench/results/study.json, or study-PART.json")
    parser.add_argument(
        "--minutes", type=positive, help="write the finished runs after this time (default: when all is done)"
    )
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    part = f"-{arguments.part}" if arguments.part else ""
    runs = list(_PARTS[arguments.part](seeds))
    out = arguments.out or RESULTS / f"study{part}.json"
    limit_s = None if arguments.minutes is None else 60.0 * arguments.minutes
    num_missing = run_study(runs, out, arguments.jobs, limit_s)
    print(f"{len(runs) - num_missing} of {len(runs)} runs in {out}; next: python -m bench.report", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
