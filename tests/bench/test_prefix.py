"""`bench.prefix step`: loads of two checkouts take turns, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

from bench.prefix import step_cost

HERE = Path(__file__).resolve().parents[2]


def test_a_step_with_the_cache_is_compared_with_one_without_and_one_before() -> None:
    cost = step_cost(HERE, sittings=1, turns=2)
    assert min(cost[f"{name}_us"] for name in ("without", "with", "before")) > 0
    for name in ("ratio", "ratio_to_before"):
        assert 0 < cost[f"{name}_p25"] <= cost[name] <= cost[f"{name}_p75"]
