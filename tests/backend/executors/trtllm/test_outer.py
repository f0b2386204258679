"""Outer mode: admission only, over a TensorRT-LLM that schedules by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from backend.core.clock import VirtualClock
from backend.core.request import PriorityClass
from backend.executors.trtllm.settings import TrtllmMode, TrtllmSettings
from tests.backend.executors.trtllm.driver import Rig, make_rig
from tests.backend.executors.trtllm.fake_executor import FakeLlm, make_executor
from tests.backend.factories import be, rt


def make(monkeypatch: pytest.MonkeyPatch, llm_args: dict[str, object] | None = None, **knobs: Any) -> Rig:
    clock = VirtualClock()
    executor = make_executor("v1", clock=clock, **knobs)
    settings = TrtllmSettings("/model", llm_args=llm_args or {}, reserved_rt_seqs=4)
    return make_rig(monkeypatch, executor, clock, mode=TrtllmMode.OUTER, settings=settings)


def num_be_inside(world: Rig) -> int:
    return world.engine._gate.num_inside(PriorityClass.BEST_EFFORT)


def test_best_effort_runs_one_at_a_time_until_the_pool_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, num_blocks=64)
    inside: list[int] = []
    requests = [be(num_prompt=100, max_tokens=10) for _ in range(20)]  # 4 blocks each, of 32 that it may have
    world.play(requests, after_iteration=lambda: inside.append(num_be_inside(world)))
    assert set(inside[:9]) == {1}
    assert max(inside) == 8


def test_a_configured_pool_is_used_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch, {"kv_cache_config": {"max_tokens": 64 * 32}}, num_blocks=64)
    inside: list[int] = []
    world.play(
        [be(num_prompt=100, max_tokens=10) for _ in range(20)],
        after_iteration=lambda: inside.append(num_be_inside(world)),
    )
    assert inside[0] == 8


def test_a_version_that_reports_no_pool_keeps_best_effort_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_statistics(_: FakeLlm, timeout: float) -> AsyncIterator[dict[str, Any]]:
        assert timeout > 0
        for statistics in ({"iter": 1}, {"kvCacheStats": None}):
            yield statistics

    monkeypatch.setattr(FakeLlm, "get_stats_async", no_statistics)
    world = make(monkeypatch)
    inside: list[int] = []
    ends = world.play([be() for _ in range(3)], after_iteration=lambda: inside.append(num_be_inside(world))).ends
    assert max(inside) == 1
    assert set(ends.values()) == {"length"}


def test_real_time_enters_at_once_beside_a_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"max_batch_size": 16, "kv_cache_config": {"max_tokens": 200 * 32}}
    world = make(monkeypatch, arguments, num_blocks=200, max_active=16)
    backlog = [be(num_prompt=300, max_tokens=100) for _ in range(30)]
    urgent = [rt(num_prompt=100, max_tokens=10, arrival_s=1.0 + index) for index in range(3)]
    transcript = world.play([*backlog, *urgent])
    for request in urgent:
        assert transcript.token_times_s[request.request_id][0] - request.arrival_s < 0.2
    assert set(transcript.ends.values()) == {"length"}
    world.executor.assert_nothing_leaked()


def test_classes_are_told_apart_by_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(monkeypatch)
    world.play([be(), rt()])
    assert sorted(submitted.priority for submitted in world.llm.submitted) == [0.0, 1.0]
