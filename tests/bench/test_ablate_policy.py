"""Ablations of the policy: each switch changes what it names and nothing afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import ablate_policy
from bench.ablate_policy import CELLS, MECHANISMS, NOTHING, complete, run
from bench.sim.disturbance import SLOW_PERIOD_S, STALL_SHARE, disturbance
from bench.sim.scenario import Scenario
from bench.study import RESULTS, simulation_code

TINY = Scenario(rt_rate=20.0, be_outstanding=16, kv_tokens=4096, max_seqs=32, warmup_s=0.0, duration_s=2.0, drain_s=2.0)


@pytest.fixture(autouse=True)
def _tiny_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate_policy, "CELLS", {"tiny": TINY, "noisy": replace(TINY, step_noise=0.2)})


def test_every_switch_lets_the_run_end_and_is_undone_after_it() -> None:
    before = run(NOTHING, "tiny", 0)
    for mechanism in MECHANISMS:
        assert run(mechanism, "tiny", 0)["num_rt"] == before["num_rt"]
    assert run(NOTHING, "tiny", 0) == before


def test_a_switch_changes_the_schedule() -> None:
    assert run("Little's law, KV slots", "tiny", 0) != {
        **run(NOTHING, "tiny", 0),
        "mechanism": "Little's law, KV slots",
    }


def test_runs_that_are_there_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    complete(out, [NOTHING], ["tiny"], [0])
    first = json.loads(out.read_text())["runs"]
    monkeypatch.setattr(ablate_policy, "run", lambda *key: pytest.fail(f"{key} ran again"))
    complete(out, [NOTHING], ["tiny"], [0])
    assert json.loads(out.read_text())["runs"] == first


def test_runs_and_cells_of_other_code_stay(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    keys = [(NOTHING, "tiny", 0), ("deposit", "tiny", 0), ("gone", "old cell", 1)]
    codes: list[dict[str, Any]] = [{}, {"code": "an older one"}, {}]
    old = [
        {"mechanism": mechanism, "cell": cell, "seed": seed, "num_rt": -1, **code}
        for (mechanism, cell, seed), code in zip(keys, codes, strict=True)
    ]
    out.write_text(json.dumps({"provenance": {}, "cells": {"old cell": {"rt_rate": 1.0}}, "runs": old}))
    complete(out, [NOTHING], ["tiny"], [0])
    written = json.loads(out.read_text())
    *others, new = written["runs"]
    assert new["num_rt"] > 0
    assert new["code"] == simulation_code("bros")
    assert others == old
    assert {"tiny", "old cell"} <= written["cells"].keys()


def test_what_was_published_is_a_file_that_can_be_completed(tmp_path: Path) -> None:
    published = json.loads((RESULTS / "policy-ablations.json").read_text())["runs"]
    out = tmp_path / "result.json"
    out.write_text((RESULTS / "policy-ablations.json").read_text())
    complete(out, [NOTHING], ["tiny"], [0])
    assert json.loads(out.read_text())["runs"][:-1] == published


def test_the_names_of_mechanisms_and_cells_are_one_to_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ablate_policy", "--help"])
    with pytest.raises(SystemExit):
        ablate_policy.main()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {*MECHANISMS, "tiny", "noisy", "mechanisms:", "cells:"} <= set(lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0"], "argument --seeds: 0 is below 1"),
        (["--out", "README.md"], "--out README.md is not JSON"),
        (["--out", "bench/results/many.json"], "--out bench/results/many.json is not a file of this command"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ablate_policy", *arguments])
    monkeypatch.chdir(RESULTS.parents[1])
    with pytest.raises(SystemExit) as ended:
        ablate_policy.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_cells_are_scenarios_that_score_something() -> None:
    for scenario in CELLS.values():
        scenario.check()


def test_noise_has_mean_one_and_a_slow_machine_is_slow_half_the_time() -> None:
    noisy = disturbance(0.2, 1.0, 0.0, seed=1)
    factors = [noisy(1.0, 0.0) for _ in range(2000)]
    assert sum(factors) / 2000 == pytest.approx(1.0, abs=0.02)
    assert min(factors) < 0.7
    assert max(factors) > 1.4
    slow = disturbance(0.0, 1.5, 0.0, seed=1)
    assert [slow(2.0, part * SLOW_PERIOD_S) for part in (0.1, 0.6, 1.1)] == [2.0, 3.0, 2.0]


def test_a_stall_is_added_to_few_steps() -> None:
    stalling = disturbance(0.0, 1.0, 0.3, seed=1)
    times_s = [stalling(0.02, 0.0) for _ in range(5000)]
    assert set(times_s) == {0.02, 0.32}
    assert times_s.count(0.32) == pytest.approx(5000 * STALL_SHARE, rel=0.5)


@pytest.mark.parametrize("field", ["step_noise", "slowdown", "stall_s"])
def test_a_disturbance_below_its_range_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        replace(TINY, **{field: -0.5}).check()
