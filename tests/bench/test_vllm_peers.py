"""The load that vLLM's schedulers share, and the table made of their scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.report.vllm import vllm_sections
from bench.vllm_loads import LOADS, draw


def test_every_system_gets_the_same_arrivals_in_order() -> None:
    first, again = (draw(LOADS["backlog"], 0.9, 30.0, seed=3) for _ in range(2))
    assert first == again
    assert [query.arrival_s for query in first] == sorted(query.arrival_s for query in first)
    assert sum(not query.is_rt for query in first) == 150


def test_rates_are_scaled_to_the_machine() -> None:
    slow, fast = (draw(LOADS["1.2+0.55"], scale, 200.0, seed=1) for scale in (0.5, 2.0))
    assert 3.0 < len(fast) / len(slow) < 5.0


def run(load: str, system: str, share: float) -> dict[str, Any]:
    points = {"p50": 0.1, "p90": 0.2, "p99": 0.3}
    return {
        "load": load,
        "system": system,
        "rt_attainment": {"both": share},
        "ttft_s": points,
        "tpot_s": points,
        "be_requests_per_s": 0.5,
        "be_tokens_per_s": 40.0,
    }


def test_rounds_are_averaged_in_one_row(tmp_path: Path) -> None:
    cost = {"vllm_us": 250.4, "bros_us": 500.0, "added_us": 249.6}
    document = {
        "provenance": {
            "commit": "abc",
            "has_local_changes": False,
            "date": "2026-11-29",
            "hardware": {"cpu": "a processor", "num_cores": 2, "memory_gib": 23.5},
            "versions": {"python": "3.11"},
        },
        "engine": "vLLM 0.32.0 on cpu",
        "scale": 0.8,
        "config": {"rounds": 2, "duration_s": 40.0},
        "slos": {"ttft_s": 1.0, "tpot_s": 0.1},
        "overhead": {"num_running": 64, "num_turns": 3, "alone": cost, "beside_model": cost},
        "runs": [run("backlog", "bros", 0.99), run("backlog", "bros", 1.0), run("backlog", "fcfs", 0.0)],
    }
    (tmp_path / "vllm-peers.json").write_text(json.dumps(document))
    *_, table, _, costs = vllm_sections(tmp_path)
    assert "| 250 | 500 | 250 |" in costs
    assert "| backlog | `bros` | 99.5 % | 0.10 / 0.30 | 100 / 300 | 0.50 | 40 |" in table
    assert table.count("\n") == 3


def test_without_results_there_is_no_section(tmp_path: Path) -> None:
    assert vllm_sections(tmp_path) == []
