"""VllmEngine: commands in, tokens and exactly one end each out."""

from __future__ import annotations

import threading

import pytest

from backend.core.request import PriorityClass, RequestId, SamplingParams
from backend.engine.engine import Cancel, Inspect
from backend.server.snapshot import StepLog, snapshot
from tests.backend.executors.vllm.driver import Rig, make_rig
from tests.backend.factories import be, make_request, rt

A, B = RequestId("a"), RequestId("b")


def test_tokens_and_log_probabilities_come_in_order() -> None:
    rig = make_rig()
    rig.play([be(request_id=A, max_tokens=5), rt(request_id=B, max_tokens=3)])
    assert rig.token_ids == {A: [1, 2, 3, 4, 5], B: [1, 2, 3]}
    assert rig.log_probs[B] == [-0.5] * 3


def test_a_cancelled_request_ends_once_and_frees_its_blocks() -> None:
    rig = make_rig()
    rig.post(be(request_id=A, max_tokens=500))
    rig.engine.step()
    rig.engine.post(Cancel(A))
    rig.engine.post(Cancel(A))
    assert not rig.engine.step()
    assert rig.ends == {A: "cancelled"}
    assert rig.scheduler.kv_cache_manager.block_pool.num_free == 40
    assert rig.engine.stats().kv.num_free_blocks == 40


def test_what_vllm_refuses_is_the_error_of_that_request_alone() -> None:
    rig = make_rig()
    unlucky = make_request(request_id=A, sampling=SamplingParams(max_tokens=2, top_k=13))
    rig.play([unlucky, be(request_id=B)])
    assert rig.ends == {A: "vLLM refused 'a': top_k 13 brings bad luck", B: "length"}


def test_a_request_beyond_the_pool_is_refused() -> None:
    rig = make_rig(num_blocks=4)
    rig.post(be(num_prompt=100, request_id=A))
    rig.engine.step()
    assert "exceed the KV pool of 64 slots" in rig.ends[A]


def test_queues_are_bounded() -> None:
    rig = make_rig(max_waiting_be=2)
    rig.post(*(be(request_id=f"be{index}", num_prompt=2000, max_tokens=1) for index in range(2)))
    rig.post(*(be(request_id=f"x{index}") for index in range(40)))
    rig.engine.step()
    rig.post(*(be(request_id=f"y{index}") for index in range(40)))
    rig.engine.step()
    assert any("be requests are waiting" in end for end in rig.ends.values())


def test_after_an_error_of_ours_only_the_sum_of_the_queues_bounds_what_is_open() -> None:
    rig = make_rig(max_waiting_be=2, max_waiting_rt=1)
    rig.steering.error = ValueError("a bug of ours")
    rig.post(*(be(request_id=f"be{index}") for index in range(4)))
    rig.engine._drain_inbox()
    rig.engine._flush()
    assert rig.ends == {"be3": "vLLM: 3 requests are open; retry_after_ms=1000"}


def test_what_vllm_raises_in_a_step_ends_every_request_and_the_engine() -> None:
    rig = make_rig()
    rig.runtime.fault = RuntimeError("a worker died")
    rig.post(be(request_id=A), rt(request_id=B))
    with pytest.raises(RuntimeError, match="a worker died"):
        rig.engine.run()
    assert set(rig.ends.values()) == {"the engine stopped: a worker died"}
    assert rig.runtime.is_closed


def test_stop_ends_an_engine_that_waits() -> None:
    rig = make_rig()
    thread = threading.Thread(target=rig.engine.run)
    thread.start()
    rig.engine.stop()
    thread.join(10.0)
    assert not thread.is_alive()
    assert rig.runtime.is_closed


def test_an_inspector_sees_the_requests_and_their_blocks() -> None:
    rig = make_rig()
    rig.post(rt(request_id=A, max_tokens=50), be(request_id=B, max_tokens=50))
    rig.engine.step()
    rig.engine.step()
    seen = look(rig)
    assert {view.request_id: view.num_held for view in seen.requests} == {"a": 33, "b": 33}
    assert seen.requests_by_class["rt"].num_running == 1
    assert sum(seen.kv.head_fill) == 33


def look(rig: Rig):  # type: ignore[no-untyped-def]  # a Snapshot
    seen = []
    rig.engine.post(Inspect(lambda scheduler: seen.append(snapshot(scheduler, StepLog(), rig.clock.now_s()))))
    rig.engine._drain_inbox()
    assert isinstance(seen[0].requests, list)
    return seen[0]


def test_statistics_at_rest_count_nobody() -> None:
    rig = make_rig()
    rig.play([be(request_id=A), rt(request_id=B)])
    stats = rig.engine.stats()
    assert all(counts.num_running == 0 for counts in stats.requests.values())
    assert stats.total_step_tokens[PriorityClass.BEST_EFFORT] > 0
