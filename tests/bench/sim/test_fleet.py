"""A fleet behind one frontend: how routers choose, what the frontend's time does, and that nothing is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from backend.executors.sim import SimSettings
from bench.common.score import Slos
from bench.common.workload import Arrival
from bench.sim.fleet import (
    BE_COALESCE_S,
    Fleet,
    FleetLoad,
    Frontend,
    RouterState,
    choose_kv,
    choose_least_loaded,
    make_round_robin,
)

STEP_S = 0.04
ENGINE = SimSettings(coefficients=(STEP_S, 0, 0, 0, 0), max_seqs_per_step=8, max_tokens_per_step=512)
FREE = Frontend(0.0, 0.0, 0)
LOAD = FleetLoad(
    rt=[Arrival(0.1 * index, 100, 20) for index in range(20)],
    be=[Arrival(0.05 * index, 400, 10) for index in range(40)],
    slos=Slos(1.0, 0.2),
    duration_s=4.0,
)


def ran(num_replicas: int = 2, router: str = "kv", frontend: Frontend = FREE, load: FleetLoad = LOAD) -> Fleet:
    fleet = Fleet([ENGINE] * num_replicas, frontend, router, load)
    fleet.run()
    return fleet


def test_kv_takes_the_least_prefill_and_blocks() -> None:
    states = [RouterState(1, 0, 40), RouterState(3, 320, 15), RouterState(9, 0, 34)]
    assert choose_kv(states, 160, 16) == 2
    assert choose_least_loaded(states, 160, 16) == 0


def test_round_robin_takes_turns() -> None:
    choose = make_round_robin()
    assert [choose([RouterState()] * 3, 1, 16) for _ in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("router", ["round-robin", "least-loaded", "kv"])
def test_every_request_gets_all_its_tokens_in_order(router: str) -> None:
    fleet = ran(router=router)
    assert not fleet.errors
    for record in fleet.records:
        if record.is_rt or record.finished_s is not None:
            assert len(record.token_times_s) == record.num_output
            assert record.token_times_s == sorted(record.token_times_s)
            assert record.token_times_s[0] >= record.arrival_s + STEP_S


def test_a_run_repeats_exactly() -> None:
    first, again = (ran(frontend=Frontend(1e-3, 1e-4, 2)) for _ in range(2))
    assert [record.token_times_s for record in first.records] == [record.token_times_s for record in again.records]
    assert first.busy_s == again.busy_s > 0.0


def test_the_routers_counts_are_zero_when_all_has_ended() -> None:
    fleet = ran(load=replace(LOAD, be=[], duration_s=30.0))
    assert all(record.finished_s is not None for record in fleet.records)
    assert {(state.num_open, state.prefill_tokens, state.blocks) for state in fleet._states} == {(0, 0, 0)}


def test_a_frontend_with_too_few_cores_delays_real_time() -> None:
    """20 streams of a token a step each, and events of 10 ms: more than a core has."""

    def longest_ttft_s(num_cores: int) -> float:
        load = replace(LOAD, rt=[Arrival(0.01 * index, 100, 60) for index in range(20)], be=[])
        return max(record.ttft_s or 0.0 for record in ran(frontend=Frontend(0.05, 0.01, num_cores), load=load).records)

    assert longest_ttft_s(1) > 2 * longest_ttft_s(8) > 0.0


def test_best_effort_tokens_leave_together() -> None:
    fleet = ran(load=replace(LOAD, rt=[], be=[Arrival(0.0, 400, 60)]))
    (record,) = fleet.records
    sends = Counter(record.token_times_s)
    assert len(sends) <= 60 * STEP_S / BE_COALESCE_S + 3
    assert sum(sends.values()) == 60
