"""The comparison of a live run with its simulation, on runs that are simulated themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.common.score import RequestRecord
from bench.live.load import LoadError
from bench.serve import Setup
from bench.sim.step_models import Pair, load_pairs
from bench.simulate import Replay, Simulation
from tools.fit import Recording, compare, compare_load, scenario_of
from tools.fit_step_models import random_step

LOAD = Setup("load", rt_rate=1.0, be_rate=0.2, warmup_s=0.0, duration_s=20.0)


def make_recording(seed: int, speed: float = 1.0, delivery_s: float = 0.0, setup: Setup = LOAD) -> Recording:
    """A run on a machine that takes `speed` times as long as a known one."""
    pair = replace(load_pairs()["llama70b-a100-tp8"], host_copy_s_per_token=0.0)
    mix = setup.mix(seed)
    simulation = Simulation(scenario_of(setup, seed), Replay(_slowed(pair, speed), mix.rt, mix.be))
    simulation.run()
    records = [
        replace(record, token_times_s=[time_s + delivery_s for time_s in record.token_times_s])
        for record in simulation.records.values()
    ]
    rng = np.random.default_rng(seed)
    works = [work for work in (random_step(rng) for _ in range(600)) if work.num_new_tokens <= 512]
    times_ms = np.asarray([1e3 * speed * pair.step_s(work) for work in works])
    return Recording(setup, seed, 0.0, records, works, times_ms, delivery_s)


def _slowed(pair: Pair, speed: float) -> Pair:
    c = pair.coefficients
    names = [name for name in c.__slots__ if name not in ("knee_tokens", "smooth")]
    slowed = replace(c, **{name: speed * getattr(c, name) for name in names})
    return replace(pair, coefficients=slowed, host_overhead_s=speed * pair.host_overhead_s)


def test_a_machine_that_is_what_the_others_say_is_simulated_without_error() -> None:
    load = compare_load("load", [make_recording(seed, delivery_s=0.01) for seed in (0, 1)])
    assert load["num_rt"] > 20
    for comparison in load["comparisons"].values():
        assert comparison["error_ratio"] == pytest.approx(0.0, abs=0.03)
        low, high = comparison["error_interval"]
        assert -0.2 < low <= comparison["error_ratio"] <= high < 0.2


def test_a_run_is_simulated_without_its_own_steps_and_delivery() -> None:
    """Its machine had slowed down to half the speed: that is an error, however well its own steps are known."""
    load = compare_load(
        "load", [make_recording(0, speed=2.0, delivery_s=0.2), make_recording(1, setup=replace(LOAD, name="other"))]
    )
    assert load["comparisons"]["TPOT mean, s"]["error_ratio"] == pytest.approx(-0.5, abs=0.1)
    assert load["comparisons"]["TTFT p50, s"]["error_ratio"] < -0.5
    assert load["runs"][0]["table_error"]["sum_pct"] == pytest.approx(-50.0, abs=2.0)


def test_clients_see_first_tokens_later_than_the_engine_does() -> None:
    near, far = make_recording(1), make_recording(1, delivery_s=0.5)
    run = make_recording(0)
    ttft_s = [_ttft_s(compare(run, [other])[1]) for other in (near, far)]
    assert np.subtract(ttft_s[1], ttft_s[0]) == pytest.approx(0.5)


def test_an_unanswered_request_is_no_moderate_load() -> None:
    run = make_recording(0)
    run.records.append(RequestRecord("rt-x", True, 1.0, 5, 5))
    with pytest.raises(LoadError, match="rt-x was not answered"):
        compare_load("load", [run, make_recording(1)])


def _ttft_s(records: list[RequestRecord]) -> list[float]:
    return [record.ttft_s for record in records if record.is_rt and record.ttft_s is not None]
