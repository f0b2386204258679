"""What the frontend costs by two loads, and what the report says of fleets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.fleet import costs, make_load, run_fleet
from bench.report.fleet import fleet_text
from bench.sim.fleet import Frontend


def test_costs_come_from_two_loads() -> None:
    request_s, event_s = 2e-3, 5e-5
    found = costs(400 * request_s + 400 * event_s, 40 * request_s + 40 * 250 * event_s)
    assert found == {"request_s": pytest.approx(request_s), "event_s": pytest.approx(event_s)}


def test_the_load_grows_with_the_fleet() -> None:
    small, large = make_load(2, 30.0, 0), make_load(8, 30.0, 0)
    assert 2.0 < len(large.rt) / len(small.rt) < 8.0
    assert 3.0 < len(large.be) / len(small.be) < 5.0


def test_the_report_says_how_many_replicas_a_core_carries(tmp_path: Path) -> None:
    run = run_fleet(2, "kv", Frontend(2e-3, 1e-4, 2), duration_s=14.0, seed=0)
    facts = {"commit": "c", "has_local_changes": False, "date": "d", "versions": {}}
    facts |= {"hardware": {"num_cores": 2, "cpu": "p"}}
    measured = {"request_s": 2e-3, "event_s": 1e-4, "provenance": facts}
    document = {"measured": measured, "provenance": facts, "rt_rate": 1.5, "runs": [run]}
    (tmp_path / "fleet.json").write_text(json.dumps(document))
    text = fleet_text(tmp_path)
    assert text is not None
    assert f"| 2 | kv | 2 | {run['busy_ratio']:.0%} |" in text
    assert f"one core of a frontend carries {1 / run['busy_ratio']:.0f}." in text
    assert fleet_text(tmp_path / "absent") is None
