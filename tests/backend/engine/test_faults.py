"""Some two hundred seeded runs with faults and cancels (`python -m tests.fuzz` runs thousands; its result is kept)."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from backend.policy.settings import POLICY_NAMES
from tests.fuzz import Form, RunResult, run_one

NUM_RUNS = 160
RESULTS = Path(__file__).parents[3] / "bench" / "results"


@cache
def outcome(seed: int) -> RunResult:
    """Run each seed once for all tests."""
    return run_one(seed)


@pytest.mark.parametrize("first_seed", range(0, NUM_RUNS, 20))
def test_random_runs_lose_nothing(first_seed: int) -> None:
    failures = [result for seed in range(first_seed, first_seed + 20) if (result := outcome(seed)).error]
    assert not failures


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_random_runs_of_each_policy_lose_nothing(policy: str) -> None:
    failures = [result for seed in range(1000, 1003) if (result := run_one(seed, policy)).error]
    assert not failures


def test_random_runs_with_a_host_part_lose_nothing() -> None:
    results = [run_one(seed, form=Form.HOST_PART) for seed in (2012, 2013, 2014, 2015)]
    assert not [result for result in results if result.error]
    counts = sum((Counter(result.counts) for result in results), Counter())
    assert counts["host_parts"] == len(results)
    assert counts["prefix_tokens.rt_host"] + counts["prefix_tokens.be_host"] > 0


def test_many_short_requests_in_a_tiny_pool_lose_nothing() -> None:
    results = [run_one(seed, form=Form.TINY_POOL) for seed in range(1, 8)]
    assert not [result for result in results if result.error]
    counts = sum((Counter(result.counts) for result in results), Counter())
    assert counts["evicted_slots"] > 0
    assert counts["prefix_tokens.rt_hit"] + counts["prefix_tokens.be_hit"] > 0


def test_the_runs_meet_what_they_are_for() -> None:
    counts = sum((Counter(outcome(seed).counts) for seed in range(NUM_RUNS)), Counter())
    kinds = ("rt_checkpoint", "rt_recompute", "be_checkpoint", "be_recompute")
    assert sum(counts[f"preemptions.{kind}"] for kind in kinds) > 100
    states = ("waiting", "prefilling", "running", "preempted")
    for name in ("failed_by_faults", "restored_tokens", *(f"cancels.{state}" for state in states)):
        assert counts[name] > 0, name


def test_a_run_repeats_with_its_seed() -> None:
    assert run_one(17) == run_one(17)


@pytest.mark.parametrize("name", ["fuzz.json", "fuzz-prefix.json", "fuzz-host.json"])
def test_the_committed_long_runs_have_no_failure(name: str) -> None:
    result = json.loads((RESULTS / name).read_text())
    assert result["runs"] >= 10_000
    assert result["failures"] == []
