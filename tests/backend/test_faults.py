"""A few hundred seeded runs with faults and cancels (`python -m bench.fuzz` runs thousands; its result is kept)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.policy.settings import POLICY_NAMES
from bench.fuzz import run_one

RESULT = Path(__file__).parents[2] / "bench" / "results" / "fuzz.json"


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_random_runs_lose_nothing(first_seed: int) -> None:
    failures = [result for seed in range(first_seed, first_seed + 20) if (result := run_one(seed)).error]
    assert not failures


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_random_runs_of_each_policy_lose_nothing(policy: str) -> None:
    failures = [result for seed in range(1000, 1005) if (result := run_one(seed, policy)).error]
    assert not failures


def test_the_runs_meet_what_they_are_for() -> None:
    results = [run_one(seed) for seed in range(60)]
    assert sum(result.num_preemptions for result in results) > 10
    assert sum(result.num_cancelled for result in results) > 10
    assert sum(result.num_faults for result in results) > 10


def test_a_run_repeats_with_its_seed() -> None:
    assert run_one(17) == run_one(17)


def test_the_committed_long_run_has_no_failure() -> None:
    result = json.loads(RESULT.read_text())
    assert result["runs"] >= 10_000
    assert result["failures"] == []
