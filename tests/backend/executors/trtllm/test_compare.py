"""The same policy through the adapter achieves what it achieves on the simulator, in whole blocks."""

from __future__ import annotations

import pytest

from tests.backend.executors.trtllm.compare import run_fake, run_sim

TOLERANCE = 0.05


def check(seed: int, horizon_s: float, manager: str, has_overlap: bool) -> None:
    sim = run_sim(seed, horizon_s, keeps_kv=manager == "v2")
    fake = run_fake(seed, horizon_s, manager, has_overlap)
    assert fake.rt_attainment >= sim.rt_attainment * (1 - TOLERANCE)
    assert fake.be_tokens_per_s >= sim.be_tokens_per_s * (1 - TOLERANCE)
    assert sim.rt_attainment > 0.9, "the workload is too hard to say anything"


@pytest.mark.parametrize("manager", ["v1", "v2"])
def test_the_adapter_achieves_what_the_simulator_does(manager: str) -> None:
    check(seed=0, horizon_s=20.0, manager=manager, has_overlap=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("manager", ["v1", "v2"])
@pytest.mark.parametrize("has_overlap", [False, True])
def test_it_does_so_on_other_workloads_and_under_overlap(seed: int, manager: str, has_overlap: bool) -> None:
    check(seed, horizon_s=60.0, manager=manager, has_overlap=has_overlap)
