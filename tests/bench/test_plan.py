"""The planner: how many replicas keep an SLO, which SLOs a policy keeps, and what it says to wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import plan as planner
from bench.plan import Outcome, main, outcome, plan
from bench.region import first_kept, kept, region
from bench.sim.scenario import Scenario
from bench.sim.step_models import load_pairs

PAIR = load_pairs()["llama8b-a100"]
SHORT = Scenario(rt_rate=4.0, be_outstanding=8, warmup_s=1.0, duration_s=4.0, drain_s=60.0)


@pytest.mark.parametrize("needed", [1, 2, 5, 16])
def test_the_fewest_replicas_are_found(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(_scenario: Scenario, _pair: object, num_replicas: int) -> Outcome:
        return Outcome(num_replicas, 100, float(num_replicas >= needed), 10.0 * num_replicas, 0.1, 0.1)

    monkeypatch.setattr(planner, "outcome", made_up)
    found = plan(SHORT, PAIR, goal=0.99, max_replicas=16)
    assert (found["num_replicas"], found["is_feasible"]) == (needed, needed == 1)
    assert found["be_tokens_per_s"] == 10.0 * needed


def test_replicas_share_the_requests() -> None:
    num_rt = [outcome(SHORT, PAIR, num_replicas).num_rt for num_replicas in (1, 2)]
    assert num_rt[1] == pytest.approx(num_rt[0] / 2, abs=1)


def test_a_low_load_is_feasible_and_leaves_best_effort_room(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rt-rate", "4", "--duration-s", "4", "--warmup-s", "1", "--be-outstanding", "8"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["is_feasible"]
    assert result["be_tokens_per_s"] > 0
    assert "1 replicas: 100.00 %" in printed.err


def test_an_objective_that_the_machine_cannot_keep_ends_without_a_number(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = ["--rt-rate", "4", "--duration-s", "4", "--warmup-s", "1", "--tpot-slo-s", "0.005"]
    assert main([*arguments, "--max-replicas", "2", "--out", str(out)]) == 1
    result = json.loads(out.read_text())
    assert (result["is_feasible"], result["num_replicas"]) == (False, None)


def test_a_fitted_step_model_is_read() -> None:
    path = Path(planner.__file__).parent / "results" / "step_model_cpu.json"
    pair = planner.read_pair(path, 40_000)
    assert (pair.kv_tokens, pair.name) == (40_000, "step_model_cpu")
    assert pair.coefficients.base_ms == json.loads(path.read_text())["coefficients"]["base_ms"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no real-time request arrives"),
        (["--rt-rate", "1", "--goal", "1.5"], "argument --goal: 1.5 is above 1"),
        (["--rt-rate", "1", "--max-replicas", "0"], "argument --max-replicas: 0 is below 1"),
        (["--rt-rate", "1", "--ttft-slo-s", "0"], "argument --ttft-slo-s: 0 is not above 0"),
        (["--rt-rate", "1", "--warmup-s", "500"], "warmup_s 500"),
        (["--rt-rate", "inf"], "argument --rt-rate: inf is not finite"),
        (["--rt-rate", "1", "--ttft-slo-s", "nan"], "argument --ttft-slo-s: nan is not finite"),
        (["--rt-rate", "1", "--step-model", "absent.json"], "--kv-tokens"),
        (["--rt-rate", "1", "--step-model", "absent.json", "--kv-tokens", "1000"], "absent.json"),
        (
            ["--scenario", "absent"],
            "argument --scenario: absent: no such file, and no scenario; there are azure_70b",
        ),
        (["--rt-rate", "-1"], "argument --rt-rate: -1 is below 0"),
        (["--rt-rate", "1", "--step-model", "README.md", "--kv-tokens", "900"], "--step-model README.md is not JSON"),
        (["--rt-rate", "1", "--rt-lengths", "README.md"], "argument --rt-lengths: README.md: no CSV file with"),
        (["--rt-trace", "trace_azure_conv.csv", "--region"], "--rt-rate, not a trace"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_first_objective_kept_is_found_by_bisection() -> None:
    ladder = (0.1, 0.2, 0.4, 0.8)
    assert [first_kept(ladder, lambda slo_s, bound=bound: slo_s >= bound) for bound in (0.0, 0.3, 0.8, 1.0)] == [  # type: ignore[misc]  # a default in a lambda
        0.1,
        0.4,
        0.8,
        None,
    ]
    assert kept([0.1, 0.3, np.inf], ladder, 0.6) == 0.4
    assert kept([0.1, 0.3, np.inf], ladder, 1.0) is None


def test_each_policy_has_a_point_at_each_load() -> None:
    found: dict[str, Any] = region(SHORT, PAIR, [2.0], goal=0.9)
    points = {point["policy"]: point for point in found["points"]}
    assert set(points) == {"bros", "priority_tuned", "priority", "fcfs"}
    assert points["bros"]["ttft_slo_s"] < 0.4
