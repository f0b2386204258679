"""What a decision costs, in function calls: a count is the same on a busy machine (`bench.micro` has times)."""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path

import pytest

from backend.core.request import PriorityClass
from bench.micro import Cost, Load, main, table

ROOT = Path(__file__).parents[3]


def calls_per_step(running: int, waiting: int, waiting_class: PriorityClass) -> float:
    """Return the Python and C calls of a step of the scheduler, on average."""
    load, counter, num_steps = Load(running, waiting, "bros", waiting_class), count(), 20
    for _ in range(80):  # until those that were queued at once have turned late at once
        load.step()
    sys.setprofile(lambda *_: next(counter) and None)
    try:
        for _ in range(num_steps):
            load.step()
    finally:
        sys.setprofile(None)
    return next(counter) / num_steps


@pytest.mark.parametrize("waiting_class", PriorityClass)
def test_a_step_costs_the_same_however_many_wait(waiting_class: PriorityClass) -> None:
    few, many = (calls_per_step(32, waiting, waiting_class) for waiting in (200, 4_000))
    assert many < 1.3 * few


def test_a_step_costs_a_few_calls_per_running_request() -> None:
    small, large = (calls_per_step(running, 0, PriorityClass.BEST_EFFORT) for running in (32, 128))
    assert (large - small) / (128 - 32) < 60


def test_the_table_is_printed_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--running", "8", "--waiting", "0", "10", "--steps", "5", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all('"median_us"' in line and '"p99_us"' in line for line in lines)


def test_the_table_of_the_document_is_that_of_the_result_file() -> None:
    result = json.loads((ROOT / "bench/results/micro.json").read_text())
    costs = [Cost(**cost) for cost in result["costs"]]
    assert table(costs) in (ROOT / "docs/algorithm.md").read_text()


def test_the_result_file_says_where_it_comes_from(tmp_path: Path) -> None:
    out = tmp_path / "micro.json"
    assert main(["--running", "8", "--waiting", "0", "--steps", "5", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {"commit", "hardware", "versions", "date"} <= result["provenance"].keys()
    assert [cost["running"] for cost in result["costs"]] == [8]
