"""The study: the grid is what it says, journals resume, and the report follows from the results alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.policy.settings import POLICY_NAMES
from bench.common.provenance import provenance
from bench.report import document as report
from bench.report.document import ROOT
from bench.report.grid import grid
from bench.report.page import page
from bench.report.tables import bars_table, on_all_seeds
from bench.sim.scenario import Scenario
from bench.study import (
    ABLATIONS,
    LOADS,
    OWN_MODULES,
    RT_CAPACITY,
    SEEDS,
    SIMULATION_CODE,
    SLO_BLIND,
    Journal,
    Run,
    execute,
    full_runs,
    own_modules,
    run_study,
    simulation_code,
    simulations,
    telling_runs,
)

TINY = Scenario(rt_rate=2.0, be_outstanding=16, warmup_s=0.0, duration_s=3.0, rt_lengths="chat_small")


def test_every_policy_meets_every_load_on_the_same_seeds() -> None:
    runs = [run for run in telling_runs() if run.group == "load"]
    cells = {(run.scenario.pair, run.load, run.scenario.seed) for run in runs}
    assert {run.scenario.policy for run in runs} == set(POLICY_NAMES)
    assert len(runs) == len(cells) * len(POLICY_NAMES)
    assert {seed for _, _, seed in cells} == set(SEEDS)
    assert len(SEEDS) >= 5


def test_policies_of_a_cell_differ_in_nothing_but_the_policy() -> None:
    first, *others = [run.scenario for run in telling_runs() if run.group == "load"][: len(POLICY_NAMES)]
    assert all(replace(other, policy=first.policy) == first for other in others)


def test_the_full_grid_has_every_pair_load_and_slo_set() -> None:
    runs = [run for run in full_runs() if run.group == "load"]
    assert {run.scenario.pair for run in runs} == set(RT_CAPACITY)
    assert {run.load for run in runs} == set(LOADS)
    assert len({(run.scenario.ttft_slo_s, run.scenario.tpot_slo_s) for run in runs}) == 2


def test_no_two_runs_share_a_key() -> None:
    keys = [run.key for run in full_runs()]
    assert len(keys) == len(set(keys))


def entry_of(run: Run, code: str) -> dict[str, Any]:
    """Return what a journal has of a run, with a mark to know it again by."""
    fields = {"group": run.group, "label": run.label, "scenario": run.scenario.to_json()}
    return {"commit": "0" * 12, "code": code, **fields, "kept": True}


def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [Run("load", replace(TINY, seed=seed), load=0.5) for seed in range(2)]
    out = tmp_path / "study.json"
    journal = Journal(out)
    kept = entry_of(runs[0], simulation_code("bros"))
    journal.add(kept)
    with journal.path.open("a") as file:
        file.write('{"torn": ')
    run_study(runs, out, num_workers=1)
    entries = json.loads(out.read_text())["runs"]
    assert entries[0] == kept
    assert entries[1]["scenario"]["seed"] == 1
    assert not journal.path.exists()
    assert "2 of 2 runs" in capsys.readouterr().err


@pytest.mark.parametrize("is_same_code", [False, True])
def test_a_published_run_is_done_again_only_if_the_simulation_changed(tmp_path: Path, is_same_code: bool) -> None:
    run = Run("load", replace(TINY, policy="fcfs"), load=0.5)
    out = tmp_path / "study.json"
    published = entry_of(run, simulation_code("fcfs") if is_same_code else "of old")
    out.write_text(json.dumps({"runs": [published]}))
    run_study([run], out, num_workers=1)
    (entry,) = json.loads(out.read_text())["runs"]
    assert entry.get("kept", False) == is_same_code


def test_the_digest_covers_every_module_that_a_simulation_loads() -> None:
    program = "import bench.simulate, sys; print(*(getattr(m, '__file__', '') or '' for m in sys.modules.values()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {
        path for path in map(Path, done.stdout.split()) if path.is_relative_to(ROOT) and ".venv" not in path.parts
    }
    assert len(loaded) > 30
    digested = {path for pattern in SIMULATION_CODE for path in ROOT.glob(pattern)}
    decide_nothing = {
        ROOT / name
        for name in (
            "backend/core/errors.py",
            "bench/__init__.py",
            "bench/common/command.py",
            "bench/common/provenance.py",
            "bench/scenario_flags.py",
        )
    }
    assert loaded - digested == decide_nothing


def test_what_another_study_has_is_not_run_again(tmp_path: Path) -> None:
    run = Run("load", replace(TINY, policy="fcfs"), load=0.5)
    published = entry_of(run, simulation_code("fcfs"))
    (tmp_path / "study.json").write_text(json.dumps({"runs": [published]}))
    run_study([run], tmp_path / "study-full.json", num_workers=1)
    assert json.loads((tmp_path / "study-full.json").read_text())["runs"] == [published]


def test_a_study_out_of_time_writes_what_is_there_and_goes_on_later(tmp_path: Path) -> None:
    done, missing = (Run("load", replace(TINY, policy="fcfs", seed=seed), load=0.5) for seed in (0, 1))
    out = tmp_path / "study.json"
    assert run_study([done], out, num_workers=1) == 0
    (entry,) = json.loads(out.read_text())["runs"]
    assert run_study([done, missing], out, num_workers=1, limit_s=0.0) == 1
    assert json.loads(out.read_text())["runs"] == [entry]
    assert run_study([done, missing], out, num_workers=1) == 0
    assert len(json.loads(out.read_text())["runs"]) == 2


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_only_policies_that_look_at_no_slo_share_a_simulation(policy: str) -> None:
    loose = replace(TINY, policy=policy, rt_rate=8.0)
    tight = replace(loose, ttft_slo_s=0.2, tpot_slo_s=0.02)
    shared = simulations([Run("load", loose), Run("load", tight)])
    assert len(shared) == (1 if policy in SLO_BLIND else 2)
    for runs in shared:
        for run, entry in zip(runs, execute(runs, {}), strict=True):
            (alone,) = execute([run], {})
            assert without_cost(entry) == without_cost(alone)


def without_cost(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("scheduling_s", "scheduler_share")}


def test_a_policys_own_modules_are_used_by_no_other() -> None:
    owners = {path: set(names) for pattern, names in OWN_MODULES.items() for path in own_modules(pattern)}
    code = [*(ROOT / "backend/policy").rglob("*.py"), *(ROOT / "backend/engine").glob("*.py")]
    assert len(owners) > len(OWN_MODULES)
    for path, names in owners.items():
        imported = f"from {'.'.join(path.relative_to(ROOT).with_suffix('').parts)} import"
        users = [user for user in code if user.stem != "registry" and imported in user.read_text()]
        assert all(owners.get(user, set(POLICY_NAMES)) <= names for user in users), path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study of real runs: two policies, two loads, two seeds, with ablations, a trace and a burst."""
    runs = []
    for seed in range(2):
        for load in (0.5, 1.5):
            for policy in ("bros", "fcfs"):
                scenario = replace(TINY, policy=policy, seed=seed, rt_rate=4.0 * load)
                runs.append(Run("load", scenario, load=load))
        for label, settings in ABLATIONS.items():
            runs.append(Run("ablation", replace(TINY, settings=settings, seed=seed), label=label, load=0.5))
    runs.append(Run("trace", replace(TINY, rt_trace="trace_azure_conv.csv", pair="llama8b-h100")))
    runs.append(Run("burst", replace(TINY, rt_cv=5.0), load=0.5))
    folder = tmp_path_factory.mktemp("results")
    document = {
        "provenance": provenance(),
        "runs": [entry for run in runs for entry in execute([run], {"commit": "0" * 12, "code": "0" * 12})],
    }
    (folder / "study.json").write_text(json.dumps(document))
    return folder


def test_the_report_shows_every_policy_and_load(results: Path) -> None:
    text = grid(results)
    for load in ("0.5", "1.5"):
        for policy in ("bros", "fcfs"):
            assert f"| {load} | {policy} |" in text
    assert all(f"| {label} |" in text for label in ABLATIONS)
    assert "Against the bars" in text


def test_each_cell_is_held_to_its_bars() -> None:
    def run(policy: str, load: float, met: float, be_rate: float, percent: float) -> dict[str, Any]:
        scenario = replace(TINY, policy=policy).to_json()
        result = {"be_tokens_per_s": be_rate, "be_percent_of_limit": percent, "rt_attainment": {"both": met}}
        return {"load": load, "scenario": scenario, **result}

    runs = [
        *(run("bros", 0.5, 1.0, 12.0, 90.0), run("priority", 0.5, 1.0, 9.0, 80.0), run("fcfs", 0.5, 0.0, 16.0, 99.0)),
        *(run("bros", 1.5, 0.6, 1.0, 40.0), run("priority", 1.5, 0.7, 0.5, 40.0), run("fcfs", 1.5, 0.1, 4.0, 90.0)),
    ]
    head = f"| {TINY.pair} | 0.4 s, 200 ms |"
    grouped_query = bars_table(runs, kv_bound_pairs=())
    assert (
        f"{head} 0.5 | 100.00: met | 90.0: **missed** | priority × 1.333 | fcfs × 0.750: **missed** |" in grouped_query
    )
    assert f"{head} 1.5 | 60.00: **missed** | 40.0 | priority × 2.000 | fcfs × 0.250 |" in grouped_query
    kv_bound = bars_table(runs, kv_bound_pairs=(TINY.pair,))
    assert f"{head} 0.5 | 100.00: met | 90.0 | priority × 1.333: met | fcfs × 0.750: **missed** |" in kv_bound


def test_the_report_is_a_function_of_the_results(results: Path, tmp_path: Path) -> None:
    assert report.render(results, tmp_path) == report.render(results, tmp_path)


def test_every_picture_that_the_report_shows_is_drawn(results: Path, tmp_path: Path) -> None:
    text = "\n".join(report.render(results, tmp_path).values())
    report.draw(results, tmp_path / "img")
    shown = set(re.findall(r"\]\((?:\S+/)?img/(\S+)\)", text))
    assert shown == {path.name for path in (tmp_path / "img").iterdir()}
    assert shown


def test_a_policy_that_lacks_seeds_is_named_instead_of_compared() -> None:
    def entry(policy: str, seed: int) -> dict[str, Any]:
        return {
            "group": "load",
            "label": "",
            "load": 0.5,
            "scenario": replace(TINY, policy=policy, seed=seed).to_json(),
        }

    complete = [entry(policy, seed) for policy in ("bros", "fcfs") for seed in (0, 1)]
    kept, absent = on_all_seeds([*complete, entry("tgi", 0)])
    assert kept == complete
    assert absent == [f"tgi on {TINY.pair} (0.4 s, 200 ms, load 0.5): 1 of 2 seeds"]
    assert on_all_seeds(complete) == (complete, [])


def test_the_page_answers_from_the_study(results: Path) -> None:
    text = page(results)
    assert re.search(rf"^\| {TINY.pair} \| [\d.]+ / [\d.]+ \| [\d.]+ / [\d.]+ \|$", text, re.MULTILINE)
    assert re.search(r"^\| .+ \| \d of 2 cells \|", text, re.MULTILINE)


def test_the_page_says_nothing_without_results(tmp_path: Path) -> None:
    assert "|" not in page(tmp_path)


def test_the_page_fits_a_few_screens() -> None:
    assert len(page(report.RESULTS).splitlines()) < 160


def test_the_committed_documents_are_what_the_committed_results_say() -> None:
    documents = report.render(report.RESULTS, ROOT / "docs")
    assert [path.name for path, text in documents.items() if path.read_text() != text] == []
