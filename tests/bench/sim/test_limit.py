"""The limits: known small cases, and no simulated policy exceeds them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backend.policy.settings import POLICY_NAMES
from bench.common.score import Slos
from bench.common.workload import Arrival
from bench.sim.limit import Load, Machine, lines_below, max_be_tokens, min_steps, min_ttft_misses
from bench.sim.scenario import Scenario
from bench.sim.step_models import load_pairs
from bench.simulate import simulate

SLOS = Slos(0.4, 0.2)
PAIR = load_pairs()["llama8b-a100"]
MACHINE = Machine(PAIR, PAIR.kv_tokens, 256, 2048)


def be_of(num_prompt: int, num_output: int, count: int) -> list[Arrival]:
    return [Arrival(0.0, num_prompt, num_output)] * count


def make_load(**knobs: Any) -> Load:
    be = be_of(768, 80, 400)
    load = Load(horizon_s=10.0, served=[], num_forced_steps=0, be=be, max_outstanding=256, max_ahead_tokens=1e9)
    return replace(load, **knobs)


@pytest.mark.parametrize("name", sorted(load_pairs()))
def test_every_line_lies_below_the_step_time(name: str) -> None:
    pair = load_pairs()[name]
    tokens = np.arange(0, 2049)
    times = np.asarray([pair.token_ms(int(n)) for n in tokens])
    for alpha, beta in lines_below(pair, 2048):
        assert (alpha + beta * tokens <= times + 1e-9).all()


def test_prefill_alone_is_limited_by_gpu_time() -> None:
    """Requests of one output token are prefill only: full steps of 2,048 tokens, one after the other, are the best."""
    limit = max_be_tokens(MACHINE, make_load(be=be_of(1024, 1, 400)))
    full_step_s = 1e-3 * (PAIR.token_ms(2048) + PAIR.coefficients.prefill_ms_per_pair * 1024**2) + PAIR.host_overhead_s
    assert limit is not None
    assert limit == pytest.approx(10.0 / full_step_s * 2048, rel=0.03)
    assert limit >= 10.0 / full_step_s * 2048


def test_supply_is_a_limit_too() -> None:
    assert max_be_tokens(MACHINE, make_load(be=be_of(768, 80, 5))) == pytest.approx(5 * (768 + 79))


def test_less_kv_means_a_lower_limit() -> None:
    load = make_load(be=be_of(768, 500, 400), horizon_s=60.0, max_outstanding=64)
    small, large = (max_be_tokens(Machine(PAIR, kv, 256, 2048), load) for kv in (10_000, 400_000))
    assert small is not None
    assert large is not None
    assert small < 0.7 * large


def test_real_time_work_lowers_the_limit_and_may_not_fit() -> None:
    served = [Arrival(0.1 * i, 500, 100) for i in range(50)]
    with_rt, without = (max_be_tokens(MACHINE, make_load(served=rt)) for rt in (served, []))
    assert with_rt is not None
    assert without is not None
    assert with_rt < 0.9 * without
    assert max_be_tokens(MACHINE, make_load(served=[Arrival(0.0, 8000, 1)] * 100)) is None


def test_a_closed_loop_cannot_run_ahead_of_its_order() -> None:
    """With one request at a time each decode is a step of its own, whatever comes later in the supply."""
    one, many = (max_be_tokens(MACHINE, make_load(max_outstanding=n)) for n in (1, 256))
    assert one is not None
    assert many is not None
    assert one < 0.3 * many


def test_forced_steps_of_windows_that_overlap_are_counted_once() -> None:
    lone = [Arrival(0.0, 10, 5)]
    assert min_steps(lone, SLOS, 100.0) == 5
    assert min_steps(lone * 3, SLOS, 100.0) == 5
    assert min_steps([*lone, Arrival(50.0, 10, 7)], SLOS, 100.0) == 12


def test_forced_steps_match_brute_force() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        rt = [Arrival(float(t), 1, int(n)) for t, n in zip(rng.uniform(0, 4, 5), rng.integers(1, 6, 5), strict=True)]
        windows = [(r.arrival_s, r.arrival_s + 0.4, 1) for r in rt]
        windows += [(r.arrival_s, r.arrival_s + 0.4 + 0.2 * (r.num_output - 1), r.num_output) for r in rt]
        disjoint = (
            subset
            for size in range(6)
            for subset in itertools.combinations(windows, size)
            if all(a[1] <= b[0] or b[1] <= a[0] for a, b in itertools.combinations(subset, 2))
        )
        assert min_steps(rt, SLOS, 100.0) == max(sum(w for _, _, w in subset) for subset in disjoint)


def misses_by_brute_force(rt: list[Arrival], ttft_slo_s: float, work_s: list[float]) -> int:
    """Try every subset to be served on time, in arrival order."""
    order = sorted(range(len(rt)), key=lambda i: rt[i].arrival_s)
    for num_kept in range(len(rt), -1, -1):
        for kept in itertools.combinations(order, num_kept):
            end_s, is_ok = 0.0, True
            for i in kept:
                end_s = max(end_s, rt[i].arrival_s) + work_s[i]
                is_ok &= end_s <= rt[i].arrival_s + ttft_slo_s
            if is_ok:
                return len(rt) - num_kept
    raise AssertionError("the empty subset is always on time")


def test_fewest_misses_match_brute_force() -> None:
    rng = np.random.default_rng(2)
    beta = max(beta for alpha, beta in lines_below(PAIR, 2048) if alpha >= 0.0)
    num_missed = 0
    for _ in range(40):
        prompts = rng.integers(100, 6000, 8)
        rt = [Arrival(float(t), int(p), 1) for t, p in zip(rng.uniform(0, 1, 8), prompts, strict=True)]
        pair_ms = PAIR.coefficients.prefill_ms_per_pair
        work_s = [1e-3 * (beta * r.num_prompt + pair_ms * r.num_prompt**2 / 2) for r in rt]
        expected = misses_by_brute_force(rt, 0.4, work_s)
        num_missed += expected
        assert min_ttft_misses(MACHINE, rt, 0.4) == expected
    assert num_missed > 40


def percent_of_limit(policy: str, pair: str, seed: int) -> float:
    """A short loaded run that begins empty."""
    load: dict[str, Any] = {"rt_rate": 1.0, "be_outstanding": 96, "warmup_s": 2.0, "duration_s": 10.0}
    result = simulate(Scenario(pair=pair, policy=policy, seed=seed, drain_s=0.0, **load))
    return float(result["be_percent_of_limit"])


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("pair", ["llama8b-a100", "opt13b-a100-tp2"])
def test_no_policy_exceeds_the_limit(policy: str, pair: str) -> None:
    assert 20.0 < percent_of_limit(policy, pair, seed=0) <= 100.0


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("pair", sorted(load_pairs()))
@pytest.mark.parametrize("seed", range(1, 11))
def test_no_policy_exceeds_the_limit_on_many_seeds(policy: str, pair: str, seed: int) -> None:
    assert 20.0 < percent_of_limit(policy, pair, seed) <= 100.0
