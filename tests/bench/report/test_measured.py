"""The measured part of the report, and the fit to recorded steps, on made-up but complete inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.common.provenance import provenance
from bench.common.score import RequestRecord, Slos, score_be, score_rt
from bench.report import document as report
from bench.serve import SLOS, Setup
from bench.sim.step_models import load_pairs
from tools.fit import fit_steps, read_steps
from tools.fit_step_models import random_step


def make_run(mix: str, policy: str, num_met: int, num_rt: int, be_tokens_per_s: float) -> dict[str, Any]:
    """A result as bench.serve writes it: `num_met` requests meet every SLO, the others are never answered."""
    setup = Setup(mix, be_backlog=150, warmup_s=0.0, duration_s=60.0)
    records = [
        RequestRecord(f"rt-{i}", True, 1.0 + i, 5, 2, [1.1 + i, 1.12 + i] if i < num_met else [], 1.2 + i)
        for i in range(num_rt)
    ]
    return {
        "setup": {name: getattr(setup, name) for name in Setup.__slots__},
        "seed": 0,
        "policy": policy,
        **score_rt(records, Slos(1.0, 0.1), setup.window),
        "rt_attainment_at": {
            f"{s.ttft_slo_s:g} s, {s.tpot_slo_s * 1e3:g} ms": score_rt(records, s, setup.window)["rt_attainment"]
            for s in SLOS
        },
        **score_be([], setup.window),
        "be_tokens_per_s": be_tokens_per_s,
        "engine_busy_ratio": 0.25,
        "foreign_cores": 0.0,
    }


def rendered(tmp_path: Path, runs: list[dict[str, Any]]) -> str:
    (tmp_path / "measured.json").write_text(json.dumps({"provenance": provenance(), "runs": runs}))
    return report.measured(tmp_path)


@pytest.mark.parametrize(("num_met", "verdict"), [(45, "met"), (44, "**missed**")])
def test_the_attainment_bar_is_judged_on_requests(tmp_path: Path, num_met: int, verdict: str) -> None:
    text = rendered(tmp_path, [make_run("backlog", "bros", num_met, 45, 50.0)])
    assert f"meets (1 s, 100 ms) for {num_met} of 45 (bar 99%: {verdict})" in text


@pytest.mark.parametrize(("kept", "verdict"), [(60.0, "met"), (59.0, "**missed**")])
def test_the_best_effort_bar_is_what_real_time_leaves(tmp_path: Path, kept: float, verdict: str) -> None:
    """Alone 100 tokens/s; RT alone keeps the engine busy for a quarter: 80 % of the other 75 is 60."""
    runs = [
        make_run("backlog", "bros", 45, 45, kept),
        make_run("be_alone", "bros", 0, 0, 100.0),
        make_run("rt_alone", "bros", 45, 45, 0.0),
    ]
    assert f"less the RT work (bar 80%: {verdict})" in rendered(tmp_path, runs)


def test_measured_rows_carry_an_interval_over_requests(tmp_path: Path) -> None:
    assert "| backlog | fcfs | 45 | 0.0 % [0, 8] |" in rendered(tmp_path, [make_run("backlog", "fcfs", 0, 45, 9.0)])


@pytest.mark.parametrize(
    ("what", "simulated", "cell"),
    [
        ("TPOT p50, s", 0.9, "| -10.0 % [-30, +5] | 10 %: met |"),
        ("TPOT p50, s", 1.11, "| +11.0 % [-30, +5] | 10 %: **missed** |"),
        ("TTFT p90, s", 1.11, "| +11.0 % [-30, +5] | 20 %: met |"),
        ("TTFT p90, s", 0.79, "| -21.0 % [-30, +5] | 20 %: **missed** |"),
    ],
)
def test_the_simulators_error_is_held_against_its_bar(tmp_path: Path, what: str, simulated: float, cell: str) -> None:
    step_errors = dict.fromkeys(("mean_pct", "p95_pct", "sum_pct"), 1.0)
    run = {"seed": 0, "foreign_cores": 0.0, "num_steps": 9, "table_error": step_errors, "roofline_error": step_errors}
    run |= {"delivery_s": {"measured": 0.006, "simulated": 0.005}}
    comparison = {"measured": 1.0, "simulated": simulated, "error_ratio": simulated - 1.0}
    comparisons = {what: {**comparison, "error_interval": [-0.3, 0.05]}}
    load = {"name": "mix", "num_rt": 9, "runs": [run], "comparisons": comparisons}
    document = {"provenance": provenance(), "seeds": [0], "loads": [load]}
    (tmp_path / "simulator_error.json").write_text(json.dumps(document))
    text = report.measured(tmp_path)
    assert cell in text
    assert "| mix | 0 | 9 | 1.0 %, +1.0 % | 1.0 %, +1.0 % | 6.0 / 5.0 | 0.00 |" in text


def test_a_fit_recovers_a_known_machine_and_its_linear_form() -> None:
    rng = np.random.default_rng(0)
    pair = load_pairs()["llama8b-h100"]
    works = [random_step(rng) for _ in range(300)]
    document = fit_steps(works, np.asarray([1e3 * pair.step_s(work) for work in works]), seed=0)
    assert document["heldout_error"]["mean_pct"] < 1.5
    assert document["linear_heldout_error"] < 0.15
    assert len(document["latency_coefficients"]) == 6
    assert min(document["latency_coefficients"]) >= 0.0


def test_a_step_lasts_until_the_next_one_ends_where_the_engine_was_not_idle() -> None:
    def line(end_s: float, duration_s: float, counts: list[int]) -> str:
        step = {"end_s": end_s, "duration_s": duration_s, "starts": [5] * len(counts), "counts": counts}
        return json.dumps({**step, "num_copied": 3})

    lines = [line(10.0, 0.02, [9]), line(10.5, 0.02, [9]), line(13.0, 0.02, [1, 1]), line(13.025, 0.02, [64])]
    works, times_ms = read_steps("\n".join(lines))
    assert times_ms.tolist() == pytest.approx([20.0, 25.0])  # the first two are warm-up; before the third it was idle
    assert [(work.num_decodes, work.num_new_tokens, work.num_copied) for work in works] == [(2, 2, 3), (0, 64, 3)]
