"""Untuned traffic: every scenario is run alone and beside best-effort work, and the table keeps them apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from bench.report.traffic import traffic_sections
from bench.study import PRICED, STEP_CAPS_S, TRAFFIC, run_study, traffic_runs


def test_each_scenario_is_run_alone_and_under_two_policies() -> None:
    runs = [run for run in traffic_runs((0,)) if run.group == "traffic"]
    assert [run.label for run in runs] == [name for name in TRAFFIC for _ in range(3)]
    alone, beside = runs[::3], [run for run in runs if run not in runs[::3]]
    assert all(next(run.scenario.be_supply(), None) is None for run in alone)
    assert all(next(run.scenario.be_supply(), None) is not None for run in beside)
    for run in runs:
        run.scenario.check()


def test_the_table_has_a_row_for_each_scenario_and_a_column_for_each_run(tmp_path: Path) -> None:
    runs = [
        replace(run, scenario=replace(run.scenario, duration_s=4.0, warmup_s=0.0, drain_s=30.0))
        for run in traffic_runs((0,))
        if run.label in ("few_rt", "mixed_slos")
    ]
    assert run_study(runs, tmp_path / "study-traffic.json", num_workers=1) == 0
    entries = json.loads((tmp_path / "study-traffic.json").read_text())["runs"]
    *_, table = traffic_sections(tmp_path)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["few rt", "mixed slos"]
    first = [100 * entry["rt_attainment"]["both"] for entry in entries[:3]]
    assert [float(cell) for cell in rows[0][1:4]] == [round(value, 2) for value in first]
    assert entries[0]["be_tokens_per_s"] == 0.0
    assert float(rows[0][4].replace(",", "")) == round(entries[1]["be_tokens_per_s"]) > 0


def test_shorter_steps_have_a_row_each_beside_the_default(tmp_path: Path) -> None:
    runs = [
        replace(run, scenario=replace(run.scenario, duration_s=6.0, warmup_s=0.0, drain_s=30.0))
        for run in traffic_runs((0,))
        if run.label == PRICED or run.group == "price"
    ]
    assert run_study(runs, tmp_path / "study-traffic.json", num_workers=1) == 0
    entries = json.loads((tmp_path / "study-traffic.json").read_text())["runs"]
    *_, table = traffic_sections(tmp_path)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    longest_first = sorted(STEP_CAPS_S, reverse=True)
    assert [row[0] for row in rows] == ["by the SLOs (default)", *(f"{cap_s:g} s" for cap_s in longest_first)]
    of_caps = {entry["label"]: entry for entry in entries if entry["group"] == "price"}
    usual = entries[1]["be_tokens_per_s"]
    for label, in_time, _, share in rows[1:]:
        assert in_time == f"{100 * of_caps[label]['rt_attainment']['both']:.2f} %"
        assert share == f"{100 * of_caps[label]['be_tokens_per_s'] / usual:.0f} %"


def test_without_a_result_there_is_no_section(tmp_path: Path) -> None:
    assert traffic_sections(tmp_path) == []
