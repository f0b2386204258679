"""Loading: the mode that a version and a configuration allow, the arguments of `LLM`, and the message of a failure."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import pytest

from backend.core.clock import VirtualClock
from backend.core.errors import ConfigError, ExecutorError
from backend.executors.trtllm.inner import BrosRequestScheduler
from backend.executors.trtllm.loading import load_engine, outer_limits
from backend.executors.trtllm.settings import TrtllmMode, TrtllmSettings
from backend.policy.settings import SchedulerSettings
from tests.backend.executors.trtllm.driver import Rig, make_rig
from tests.backend.executors.trtllm.fake_executor import FakeLlm, FakeLlm12, FakePyExecutor, make_executor
from tests.backend.executors.trtllm.fake_managers import FakeKVManagerV2
from tests.backend.factories import be


def load(
    monkeypatch: pytest.MonkeyPatch,
    executor: FakePyExecutor | None = None,
    mode: TrtllmMode = TrtllmMode.AUTO,
    llm: FakeLlm | None = None,
    llm_args: dict[str, object] | None = None,
    model: str = "/model",
) -> Rig:
    clock = VirtualClock()
    executor = executor or make_executor(clock=clock)
    settings = TrtllmSettings(model, llm_args=llm_args or {})
    return make_rig(monkeypatch, executor, clock, mode=mode, llm=llm, settings=settings)


def asked_of_llm() -> dict[str, Any]:
    arguments: dict[str, Any] = sys.modules["tensorrt_llm"].LLM.arguments  # type: ignore[attr-defined]  # the fake
    return arguments


@pytest.mark.parametrize("manager", ["v1", "v2"])
def test_one_rank_in_process_gets_our_scheduler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, manager: str
) -> None:
    caplog.set_level(logging.INFO)
    world = load(monkeypatch, make_executor(manager))
    assert isinstance(world.executor.scheduler, BrosRequestScheduler)
    assert world.engine.honours_plans
    assert os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] == "1"
    assert "in inner mode" in caplog.text
    assert ("kept" in caplog.text) is (manager == "v2")


def test_more_ranks_are_served_in_outer_mode_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = load(monkeypatch, llm_args={"tensor_parallel_size": 2})
    assert not world.engine.honours_plans
    assert not isinstance(world.executor.scheduler, BrosRequestScheduler)
    assert "TLLM_WORKER_USE_SINGLE_PROCESS" not in os.environ
    assert "outer mode, admission only: 2 ranks" in caplog.text


def test_inner_mode_cannot_be_demanded_of_more_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs one rank, llm_args ask for 2"):
        load(monkeypatch, mode=TrtllmMode.INNER, llm_args={"tensor_parallel_size": 2})


def out_of_process(executor: FakePyExecutor) -> FakeLlm:
    return FakeLlm(executor, in_process=False)


def with_another_step_loop(executor: FakePyExecutor) -> FakeLlm:
    del executor.max_num_active_requests
    return FakeLlm(executor)


def unknown_manager(executor: FakePyExecutor) -> FakeLlm:
    executor.kv_cache_manager = object()
    return FakeLlm(executor)


def without_a_way_to_see_who_is_resident(executor: FakePyExecutor) -> FakeLlm:
    class First(FakeKVManagerV2):
        is_request_active = property()  # type: ignore[assignment]  # reading it raises AttributeError: it is not there

    executor.kv_cache_manager = First(8)
    return FakeLlm(executor)


def without_any_way_to_preempt(executor: FakePyExecutor) -> FakeLlm:
    executor.kv_cache_manager.has_cache_tier_below_gpu = False

    class Older:
        max_num_requests = 8

    executor.scheduler = Older()
    return FakeLlm(executor)


def with_a_python_scheduler(_: FakePyExecutor) -> FakeLlm:
    executor = make_executor("v1")
    del executor.scheduler.capacity_scheduler.impl
    return FakeLlm(executor)


@pytest.mark.parametrize(
    ("make_llm", "reason"),
    [
        (with_a_python_scheduler, "use_python_scheduler"),
        (out_of_process, "does not run in this process"),
        (with_another_step_loop, "has no max_num_active_requests"),
        (unknown_manager, "not known here"),
        (without_a_way_to_see_who_is_resident, "with First is not known here"),
        (without_any_way_to_preempt, "host_cache_size"),
    ],
)
def test_an_installation_that_lets_nobody_in_is_served_in_outer_mode(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, make_llm: Any, reason: str
) -> None:
    executor = make_executor()
    assert not load(monkeypatch, executor, llm=make_llm(executor)).engine.honours_plans
    assert reason in caplog.text
    executor = make_executor()
    llm = make_llm(executor)
    with pytest.raises(ConfigError, match=reason):
        load(monkeypatch, executor, TrtllmMode.INNER, llm)
    assert llm.is_shut_down


def test_v2_without_a_lower_tier_is_let_in_if_it_can_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, make_executor(num_host_blocks=0)).engine.honours_plans


def test_older_v2_managers_say_that_they_can_evict(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_executor()
    del executor.kv_cache_manager.has_cache_tier_below_gpu
    executor.kv_cache_manager.can_evict = True
    world = load(monkeypatch, executor)
    assert world.executor.scheduler._manager.keeps_kv


def test_a_missing_tensorrt_llm_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_engine(TrtllmSettings("/model"), SchedulerSettings(), print, VirtualClock())


def test_a_model_that_does_not_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutorError, match=r"1\.3\.0rc20 cannot load '/broken': no such checkpoint"):
        load(monkeypatch, model="/broken")


def test_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    load(monkeypatch)
    load_engine(TrtllmSettings("/model"), SchedulerSettings(), print, VirtualClock(), lambda text, _: said.append(text))
    assert said == ["importing TensorRT-LLM", "loading /model with TensorRT-LLM 1.3.0rc20"]


def test_llm_is_asked_for_what_scheduling_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch)
    arguments = asked_of_llm()
    assert arguments["model"] == "/model"
    assert arguments["enable_chunked_prefill"] is True
    assert arguments["scheduler_config"].capacity_scheduler_policy == "MAX_UTILIZATION"
    assert arguments["scheduler_config"].waiting_queue_policy == "priority"


def test_what_the_operator_says_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"enable_chunked_prefill": False, "scheduler_config": "mine", "max_batch_size": 7}
    load(monkeypatch, llm_args=mine)
    assert asked_of_llm() == {"model": "/model", **mine}


def test_a_version_without_priorities_is_asked_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    executor = make_executor("v1", clock=clock)
    world = make_rig(monkeypatch, executor, clock, mode=TrtllmMode.OUTER, llm=FakeLlm12(executor))
    assert "scheduler_config" not in asked_of_llm()
    world.play([be()])
    assert [submitted.priority for submitted in world.llm.submitted] == [0.5]


def test_outer_mode_asks_for_iteration_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, mode=TrtllmMode.OUTER)
    assert asked_of_llm()["enable_iter_perf_stats"] is True


def test_outer_limits_follow_the_arguments() -> None:
    arguments = {"max_batch_size": 64, "max_seq_len": 2048, "kv_cache_config": {"max_tokens": 6400}}
    limits = outer_limits(TrtllmSettings("/model", llm_args=arguments, be_kv_ratio=0.25), SchedulerSettings())
    assert (limits.max_inside, limits.max_seq_len, limits.block_size) == (64, 2048, 32)
    assert (limits.num_blocks, limits.max_be_blocks) == (200, 50)


def test_outer_limits_without_a_pool_size_let_one_best_effort_request_run() -> None:
    assert outer_limits(TrtllmSettings("/model"), SchedulerSettings()).max_be_blocks == 0
