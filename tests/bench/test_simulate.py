"""The simulator: reproducible, honest about misses, and its result file has the promised names."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.core.request import FinishReason
from bench.sim.scenario import SCENARIOS, Scenario
from bench.simulate import Simulation, as_if_alone, simulate

SMALL = Scenario(rt_rate=2.0, be_outstanding=32, warmup_s=1.0, duration_s=8.0, rt_lengths="chat_small")
MEASURED = {"scheduling_s", "scheduler_share"}  # real time, so never the same twice


def without_wall_time(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in MEASURED}


def test_the_same_seed_gives_the_same_result() -> None:
    assert without_wall_time(simulate(SMALL)) == without_wall_time(simulate(SMALL))


def test_another_seed_gives_another_workload() -> None:
    assert SMALL.rt_arrivals() != replace(SMALL, seed=1).rt_arrivals()


def test_real_time_arrivals_do_not_depend_on_policy_or_best_effort_load() -> None:
    assert SMALL.rt_arrivals() == replace(SMALL, policy="fcfs", be_outstanding=5).rt_arrivals()


def test_a_real_time_request_that_never_finishes_is_a_miss() -> None:
    result = simulate(replace(SMALL, rt_rate=200.0, be_outstanding=0, drain_s=0.0))
    assert result["num_rt_unfinished"] > 100
    assert result["rt_attainment"]["both"] < 1.0 - result["num_rt_unfinished"] / result["num_rt"] + 1e-9


def test_best_effort_alone_keeps_its_loop_full() -> None:
    result = simulate(replace(SMALL, rt_rate=0.0, be_outstanding=64, duration_s=20.0))
    assert result["num_rt"] == 0
    assert result["rt_attainment"] == {"ttft": None, "tpot": None, "both": None}
    assert result["be_requests_per_s"] > 5.0


def test_a_backlog_runs_dry() -> None:
    result = simulate(replace(SMALL, rt_rate=0.0, be_outstanding=0, be_backlog=10, warmup_s=0.0, duration_s=30.0))
    assert result["num_be_finished"] == 10


def test_best_effort_arrivals_may_be_open_loop() -> None:
    result = simulate(replace(SMALL, be_outstanding=0, be_rate=1.0, warmup_s=0.0, duration_s=20.0))
    assert 8 <= result["num_be_finished"] <= 32


def test_a_best_effort_trace_without_a_loop_arrives_at_its_own_times(tmp_path: Path) -> None:
    trace = tmp_path / "be.csv"
    trace.write_text("timestamp_s,prompt_tokens,output_tokens\n1.5,100,4\n3.0,50,4\n99.0,50,4\n")
    run = Simulation(replace(SMALL, be_outstanding=0, be_trace=str(trace)))
    run.run()
    arrivals = [(record.arrival_s, record.num_prompt) for record in run.records.values() if not record.is_rt]
    assert arrivals == [(1.5, 100), (3.0, 50)]


def test_best_effort_requests_get_the_deadline_of_the_scenario() -> None:
    run = Simulation(replace(SMALL, be_outstanding=0, be_rate=2.0, be_finish_by_s=9.0, rt_rate=0.0))
    run.run()
    best_effort = list(run.requests.values())
    assert best_effort
    assert all(request.deadline_s == request.arrival_s + 9.0 for request in best_effort)


def test_a_share_of_the_requests_is_judged_by_objectives_of_its_own() -> None:
    mixed = replace(SMALL, other_slo_share=0.5, other_ttft_slo_s=1e-6, duration_s=30.0)
    shares = simulate(mixed)["rt_attainment"]
    assert 0.2 < shares["ttft"] < 0.8
    assert simulate(replace(mixed, other_slo_share=1.0))["rt_attainment"]["ttft"] == 0.0


def test_those_with_other_objectives_have_lengths_of_their_own() -> None:
    lengths = {"other_prompt_tokens": 300, "other_output_tokens": 5}
    run = Simulation(replace(SMALL, other_slo_share=0.5, other_ttft_slo_s=9.0, **lengths))
    run.run()
    is_other = [record.slos is not None and record.slos.ttft_slo_s == 9.0 for record in run.rt_records()]
    assert any(is_other)
    assert not all(is_other)
    for record, drawn, other in zip(run.rt_records(), SMALL.rt_arrivals(), is_other, strict=True):
        expected = (300, 5) if other else (drawn.num_prompt, drawn.num_output)
        assert (record.num_prompt, record.num_output) == expected


def test_outputs_may_end_before_max_tokens() -> None:
    exact, unknown = Simulation(SMALL), Simulation(replace(SMALL, rt_max_tokens=4096))
    for run in (exact, unknown):
        run.run()
    for request in (request for request in unknown.requests.values() if request.is_rt):
        record = unknown.records[request.request_id]
        assert request.sampling.max_tokens == 4096
        assert len(record.token_times_s) == record.num_output
        assert request.finish_reason is FinishReason.STOP
    lengths = [sorted(record.num_output for record in run.rt_records()) for run in (exact, unknown)]
    assert lengths[0] == lengths[1]
    assert exact.scheduler.view.traffic.rt_output_ratio > unknown.scheduler.view.traffic.rt_output_ratio


def test_bursts_come_in_the_first_ten_seconds_of_a_minute() -> None:
    times_s = np.array([a.arrival_s for a in replace(SMALL, rt_burst=10.0, duration_s=600.0).rt_arrivals()])
    in_burst = np.count_nonzero(times_s % 60.0 < 10.0) / 100.0
    assert in_burst == pytest.approx(10 * SMALL.rt_rate, rel=0.1)
    assert np.count_nonzero(times_s % 60.0 >= 10.0) / 500.0 == pytest.approx(SMALL.rt_rate, rel=0.1)


def test_best_effort_keeps_its_share_of_tokens_where_real_time_fills_the_batch_slots() -> None:
    """Real-time needs 1.07 times the machine, and two thirds of the KV slots are free."""
    run = Simulation(
        Scenario(rt_rate=15.0, max_seqs=64, be_outstanding=64, warmup_s=10.0, duration_s=30.0, drain_s=0.0)
    )
    run.notes = []
    run.run()
    for start_s in (10.0, 15.0, 20.0):
        notes = [note for note in run.notes if start_s <= note.end_s < start_s + 10.0]
        num_be, num_rt = (sum(getattr(note, name) for note in notes) for name in ("num_be_tokens", "num_rt_tokens"))
        assert num_be >= 0.02 * (num_be + num_rt), f"{num_be} of {num_be + num_rt} tokens from {start_s} s on"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"duration_s": 60.0, "warmup_s": 100.0}, "duration_s 60 must be above warmup_s 100"),
        ({"be_outstanding": 4, "be_rate": 2.0}, "be_outstanding 4"),
        ({"rt_burst": 10.0, "rt_cv": 4.0}, "rt_burst 10 needs rt_cv 1"),
        ({"other_slo_share": 2.0}, "other_slo_share 2"),
    ],
)
def test_a_contradiction_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(SMALL, **change).check()


def test_what_best_effort_work_cost_is_named_request_by_request() -> None:
    crowd = replace(SMALL, policy="fcfs", be_outstanding=256, duration_s=20.0)
    result = as_if_alone(crowd)
    scored, shares = result["num_rt"], (result["alone"]["rt_attainment"]["both"], result["rt_attainment"]["both"])
    assert result["alone"]["num_be_finished"] == 0
    assert len(result["lost"]) == round(scored * (shares[0] - shares[1])) > 0
    assert all(entry["step"]["num_be_tokens"] > 0 for entry in result["lost"])


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENARIOS.glob("*.json")))
def test_a_named_scenario_loads_and_survives_json(name: str) -> None:
    scenario = Scenario.named(name)
    assert Scenario.from_json(json.loads(json.dumps(scenario.to_json()))) == scenario
    assert scenario.rt_arrivals()
    scenario.check()


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="rt_speed"):
        Scenario.from_json({"rt_speed": 3})


def test_the_command_writes_every_promised_name(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    flags = "--pair llama8b-h100 --rt-rate 2 --be-outstanding 16 --policy bros --duration-s 4 --warmup-s 0 --seed 3"
    command = [sys.executable, "-m", "bench.simulate", *flags.split(), "--set", "sharing=false", "--out", str(out)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    result = json.loads(out.read_text())
    names = (
        "rt_attainment ttft_s tpot_s itl_s normalised_latency_s be_requests_per_s be_tokens_per_s step_s preemptions"
    )
    more = "be_percent_of_limit scheduler_share recomputed_tokens copied_out_tokens copied_in_tokens scheduling_s"
    assert {*names.split(), *more.split()} <= result.keys()
    assert result["rt_attainment"].keys() == {"ttft", "tpot", "both"}
    assert result["ttft_s"].keys() == {"p50", "p90", "p99"}
    assert result["scenario"]["settings"] == {"sharing": False}
    assert {"commit", "date", "hardware", "versions"} <= result["provenance"].keys()


def test_a_wrong_flag_is_refused_with_its_name() -> None:
    command = [sys.executable, "-m", "bench.simulate", "--rt-trace", "no-such-file.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert "no-such-file.csv" in done.stderr
