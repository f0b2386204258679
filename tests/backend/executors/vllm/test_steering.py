"""Steering: vLLM's scheduler does as our policy plans, and its books follow ours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from backend.core.plan import StepPlan
from backend.core.request import PrefixSource, Request, RequestId, RequestState
from backend.policy.settings import POLICY_NAMES
from tests.backend.executors.vllm.driver import Rig, make_rig
from tests.backend.executors.vllm.fake_vllm import FakeRequest
from tests.backend.factories import be, rt


def crowded(num_be: int = 12, num_rt: int = 6) -> list[Request]:
    background = [be(num_prompt=90, max_tokens=24, request_id=f"be{index}") for index in range(num_be)]
    urgent = [
        rt(num_prompt=60, max_tokens=12, request_id=f"rt{index}", arrival_s=0.1 + 0.09 * index)
        for index in range(num_rt)
    ]
    return [*background, *urgent]


def num_recomputed(rig: Rig) -> int:
    return rig.engine.stats().total_recomputed_tokens


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_policy_serves_both_classes_in_a_small_pool(policy: str) -> None:
    rig = make_rig(policy=policy)
    rig.play(crowded())
    assert set(rig.ends.values()) == {"length"}
    assert all(tokens == list(range(1, len(tokens) + 1)) for tokens in rig.token_ids.values())
    assert rig.steering.error is None
    assert rig.scheduler.kv_cache_manager.block_pool.num_free == 40


def test_real_time_starts_before_a_backlog_that_came_first() -> None:
    waits_s = {}
    for policy in ("bros", "fcfs"):
        rig, requests = make_rig(policy=policy), crowded()
        rig.play(requests)
        urgent = [request for request in requests if request.is_rt]
        waits_s[policy] = max(rig.first_token_s[request.request_id] - request.arrival_s for request in urgent)
    assert waits_s["bros"] < 0.3 * waits_s["fcfs"]


def test_a_request_gets_no_more_tokens_than_planned() -> None:
    rig = make_rig(max_tokens_per_step=48)
    rig.play(crowded())
    assert max(sum(batch.values()) for batch in rig.runtime.batches) == 48


def test_a_withheld_request_keeps_its_kv_and_does_not_run() -> None:
    rig = make_rig()
    rig.post(be(request_id="a"), be(request_id="b"))
    rig.engine.step()
    pilot = rig.steering.pilot
    plan = pilot.policy.plan(pilot.view, rig.clock.now_s())
    a = next(request for request in plan.requests if request.request_id == "a")
    only_a = type(plan)([a], [plan.num_new_tokens[a]])
    pilot.policy.plan = lambda *_: only_a  # type: ignore[method-assign]  # a policy that withholds
    rig.engine.step()
    assert list(rig.runtime.batches[-1]) == ["a"]
    assert {request.request_id for request in rig.scheduler.running} == {"a", "b"}


@pytest.mark.parametrize(("num_planned", "num_allowed"), [(0, 1), (7, 7)])
def test_what_a_connector_loads_runs_as_planned_and_shuts_nobody_out(num_planned: int, num_allowed: int) -> None:
    """vLLM asks for those first. A cap of 0 would end its walk before the newcomers."""
    rig = make_rig()
    rig.post(be(request_id="a"), be(request_id="b"))
    rig.engine.step()
    scheduler, pilot = rig.scheduler, rig.steering.pilot
    loading = scheduler.requests["b"]
    scheduler.running.remove(loading)
    scheduler.kv_holding_waiting.append(loading)
    a, b = (twin.request for twin in pilot.mirror.twins())
    planned = StepPlan([a, b], [1, num_planned]) if num_planned else StepPlan([a], [1])
    pilot.policy.plan = lambda *_: planned  # type: ignore[method-assign]
    allowed: dict[str, int] = {}

    def own() -> SimpleNamespace:
        allowed.update(
            (request_id, rig.steering.cap(request, 50)) for request_id, request in scheduler.requests.items()
        )
        return SimpleNamespace(num_scheduled_tokens={})

    for _ in range(2):
        rig.steering.schedule(own)
    assert allowed == {"a": 1, "b": num_allowed}
    assert scheduler.num_preempted == 0, "a step that only loads is not one that is stuck"


@pytest.mark.parametrize(("has_cache", "is_kept"), [(True, True), (False, False)])
def test_what_a_victim_computed_comes_back_from_the_prefix_cache(has_cache: bool, is_kept: bool) -> None:
    rig = make_rig(num_blocks=40, has_cache=has_cache)
    rig.play([be(num_prompt=400, max_tokens=8, request_id="victim"), rt(300, 8, request_id="rt", arrival_s=0.12)])
    assert rig.scheduler.num_preempted > 0
    stats = rig.engine.stats()
    assert (stats.total_copied_in_tokens > 0) is is_kept
    assert (num_recomputed(rig) < 200) is is_kept


@pytest.mark.parametrize(("has_cache", "hits"), [(True, {PrefixSource.HIT: 16, PrefixSource.MISS: 84}), (False, {})])
def test_what_vllm_finds_of_a_prompt_is_told(has_cache: bool, hits: dict[PrefixSource, int]) -> None:
    rig, request = make_rig(has_cache=has_cache), be(num_prompt=100, max_tokens=2, request_id="a")
    rig.scheduler.kv_cache_manager.block_pool.cached["a", 0] = None
    rig.play([request])
    totals = rig.engine.stats().total_prefix_tokens
    assert request.num_cached == hits.get(PrefixSource.HIT, 0)
    assert totals == {(request.priority_class, source): num for source, num in hits.items()}


def test_a_place_is_found_for_real_time_when_best_effort_holds_them_all() -> None:
    rig = make_rig(num_blocks=400, max_seqs=4)
    background = [be(num_prompt=20, max_tokens=200, request_id=f"be{index}") for index in range(8)]
    rig.play([*background, rt(num_prompt=20, max_tokens=4, request_id="rt", arrival_s=0.2)])
    assert rig.first_token_s[RequestId("rt")] - 0.2 < 0.1
    assert rig.scheduler.num_preempted == 1


def test_an_error_of_ours_lets_vllm_schedule_by_itself() -> None:
    rig = make_rig()
    requests = [be(request_id="a"), rt(request_id="b")]
    rig.post(*requests)
    rig.engine.step()
    rig.steering.pilot.policy.plan = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]  # a bug of ours
    while len(rig.ends) < 2:
        rig.engine.step()
    assert rig.ends == {"a": "length", "b": "length"}
    assert not rig.engine.honours_plans
    assert rig.scheduler.has_fallen_back


def test_an_error_while_queues_are_arranged_loses_nobody() -> None:
    rig = make_rig()
    rig.post(*(be(request_id=f"be{index}") for index in range(5)))
    rig.engine.step()
    rig.steering._victims = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]  # a bug of ours
    while len(rig.ends) < 5:
        rig.engine.step()
    assert set(rig.ends.values()) == {"length"}


def test_a_request_without_a_ticket_runs_as_vllm_wants() -> None:
    rig = make_rig()
    rig.post(be(request_id="ours", max_tokens=50))
    rig.engine.step()
    stranger = FakeRequest("stranger", 10, 4)
    rig.scheduler.add_request(stranger)
    rig.scheduler.waiting.remove_request(stranger)
    rig.scheduler.running.append(stranger)
    rig.scheduler.schedule()
    assert stranger.num_computed_tokens == 10


def test_a_step_that_could_run_nothing_takes_a_victim_in_the_next() -> None:
    rig = make_rig(num_blocks=10)
    rig.post(be(num_prompt=100, request_id="old"))
    rig.engine.step()
    rig.scheduler.kv_cache_manager.block_pool.num_free = 0  # vLLM holds more than our books know
    pilot = rig.steering.pilot
    rig.post(be(num_prompt=30, request_id="new"))
    rig.engine._drain_inbox()
    rig.steering._catch_up(rig.clock.now_s())
    new = next(twin.request for twin in pilot.mirror.twins() if twin.request.request_id == "new")
    plan = pilot.policy.plan(pilot.view, rig.clock.now_s())
    pilot.policy.plan = lambda *_: type(plan)([new], [30])  # type: ignore[method-assign]  # insists on the newcomer
    rig.engine.step()
    assert rig.scheduler.num_preempted == 0
    rig.engine.step()
    assert rig.scheduler.num_preempted == 1
    assert list(rig.runtime.batches[-1]) == ["new"]


def test_a_cancelled_request_leaves_the_books() -> None:
    rig = make_rig()
    rig.post(be(request_id="a", max_tokens=50), rt(request_id="b", max_tokens=50))
    rig.engine.step()
    rig.engine.step()
    requests = {twin.request.request_id: twin.request for twin in rig.steering.pilot.mirror.twins()}
    rig.runtime.abort(requests[RequestId("a")].request_id)
    rig.engine.step()
    assert requests[RequestId("a")].state is RequestState.FINISHED
    rig.steering.pilot.mirror.check_invariants()
    assert len(rig.steering.pilot.mirror.twins()) == 1
