"""The ablations of docs/algorithm.md are what the result file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.report.ablations import BEGIN, END, ablations_text, differences
from bench.report.sharing import put_into

ROOT = Path(__file__).parents[3]


def run(mechanism: str, cell: str, rt: float, be: float, seed: int = 0, commit: str = "c") -> dict[str, Any]:
    return {
        "mechanism": mechanism,
        "cell": cell,
        "seed": seed,
        "commit": commit,
        "rt_attainment": rt,
        "be_tokens_per_s": be,
    }


def test_a_difference_is_a_mean_over_the_seeds_that_both_have() -> None:
    runs = [run("nothing", "a", 1.0, 100.0, seed) for seed in range(3)]
    runs += [run("pausing", "a", 0.9, 90.0, 0), run("pausing", "a", 1.0, 70.0, 1)]
    ((rt_points, be_percent),) = differences(runs, "pausing").values()
    assert rt_points == pytest.approx(-5.0)
    assert be_percent == pytest.approx(-20.0)


def test_runs_of_another_commit_are_not_compared() -> None:
    assert differences([run("nothing", "a", 1.0, 100.0), run("pausing", "a", 0.9, 9.0, commit="d")], "pausing") == {}


def test_hardly_any_best_effort_says_nothing_in_percent() -> None:
    assert differences([run("nothing", "a", 1.0, 0.1), run("pausing", "a", 1.0, 0.2)], "pausing") == {"a": (0.0, None)}


def test_a_row_names_the_cells_where_most_is_lost_and_deleted_ones_stand_apart(tmp_path: Path) -> None:
    runs = [run("nothing", cell, 1.0, 100.0) for cell in "ab"]
    runs += [run("pausing", "a", 0.9, 100.0), run("pausing", "b", 1.0, 80.0)]
    runs += [run("oracle", "a", 1.0, 104.0), run("oracle", "b", 1.0, 100.0)]
    (tmp_path / "policy-ablations.json").write_text(json.dumps({"runs": runs}))
    kept, deleted = (ablations_text(tmp_path) or "").split("Measured, and deleted:")
    assert "| pausing | a: RT -10.00, BE +0.0 % | b: RT +0.00, BE -20.0 % | – |" in kept
    assert "| oracle | – | – | a: RT +0.00, BE +4.0 % |" in deleted


def test_without_a_result_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert ablations_text(tmp_path) is None


def test_the_document_shows_the_committed_result() -> None:
    text = (ROOT / "docs" / "algorithm.md").read_text()
    tables = ablations_text(ROOT / "bench" / "results")
    assert tables is not None
    assert put_into(text, tables, BEGIN, END) == text
