"""What a real scheduler's snapshot says, as the client reads it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backend.core.executor import ExecutorCapacity
from backend.core.plan import StepResult
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.scheduler import Scheduler, make_scheduler
from backend.policy.settings import SchedulerSettings
from backend.server.snapshot import MAX_REQUESTS, StepLog, snapshot_json
from client.errors import ClientError
from client.snapshot import Snapshot, parse_snapshot

CAPACITY = ExecutorCapacity(
    block_size=16,
    num_blocks=12,
    num_host_slots=64,
    max_seq_len=256,
    max_tokens_per_step=512,
    max_seqs_per_step=256,
)


class Running:
    """A scheduler that is stepped by hand, with the log of its steps."""

    def __init__(self, num_blocks: int = CAPACITY.num_blocks) -> None:
        self.scheduler: Scheduler = make_scheduler(SchedulerSettings(), replace(CAPACITY, num_blocks=num_blocks))
        self.steps = StepLog()
        self.now_s = 0.0

    def add(self, name: str, priority_class: PriorityClass, num_prompt: int, max_tokens: int = 32) -> None:
        is_rt = priority_class is PriorityClass.REAL_TIME
        request = Request(
            request_id=RequestId(name),
            priority_class=priority_class,
            prompt_token_ids=(*name.encode(), *range(1, num_prompt + 1))[:num_prompt],
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            arrival_s=self.now_s,
            slo=Slo(ttft_slo_s=0.5, tpot_slo_s=0.1) if is_rt else None,
        )
        self.scheduler.add(request, self.now_s)

    def step(self) -> None:
        plan = self.scheduler.plan(self.now_s)
        batch = self.scheduler.commit(plan)
        pairs = zip(batch.sequences, batch.num_new_tokens, strict=True)
        tokens = [7 if request.num_computed + new == len(request.token_ids) else None for request, new in pairs]
        result = StepResult(token_ids=tokens, duration_s=0.01)
        self.now_s += 0.01
        self.steps.record(plan, batch, result, self.scheduler.complete(batch, result, self.now_s))

    def snapshot(self) -> Snapshot:
        return parse_snapshot(snapshot_json(self.scheduler, self.steps, self.now_s, names_requests=True))


@pytest.fixture
def running() -> Running:
    return Running()


def test_an_idle_engine_has_no_step_and_an_empty_pool(running: Running) -> None:
    snapshot = running.snapshot()
    assert snapshot.step is None
    assert snapshot.kv.head_fill == snapshot.kv.tail_fill == bytes(CAPACITY.num_blocks)
    assert snapshot.requests == []


def test_pool_shows_real_time_from_the_left_and_best_effort_from_the_right(running: Running) -> None:
    running.add("rt-1", PriorityClass.REAL_TIME, num_prompt=20)
    running.add("be-1", PriorityClass.BEST_EFFORT, num_prompt=40)
    running.step()
    snapshot = running.snapshot()
    assert sum(snapshot.kv.head_fill) == 20
    assert sum(snapshot.kv.tail_fill) == 40
    assert snapshot.step is not None
    assert snapshot.step.num_tokens == {"rt": 20, "be": 40}
    assert snapshot.step.num_requests == {"rt": 1, "be": 1}
    assert [(view.request_id, view.num_held) for view in snapshot.requests] == [("rt-1", 20), ("be-1", 40)]
    assert snapshot.requests[0].slack_s == pytest.approx(0.1)
    assert snapshot.requests[1].slack_s is None


def test_a_preemption_names_the_victim_and_in_whose_favour(running: Running) -> None:
    running.add("be-1", PriorityClass.BEST_EFFORT, num_prompt=150)
    running.step()
    running.add("rt-1", PriorityClass.REAL_TIME, num_prompt=140)
    running.step()
    snapshot = running.snapshot()
    (preemption,) = snapshot.preemptions
    assert (preemption.request_id, preemption.in_favour_of) == ("be-1", "rt-1")
    assert preemption.num_kept < preemption.num_known == 151
    assert snapshot.requests_by_class["be"].num_preempted == 1
    (victim,) = [view for view in snapshot.requests if view.state == "preempted"]
    assert victim.num_held == preemption.num_kept


def test_the_list_of_requests_is_bounded_and_real_time_comes_first() -> None:
    running = Running(num_blocks=256)
    for index in range(MAX_REQUESTS + 20):
        running.add(f"be-{index}", PriorityClass.BEST_EFFORT, num_prompt=2)
    running.step()
    running.add("rt-1", PriorityClass.REAL_TIME, num_prompt=2)
    running.step()
    snapshot = running.snapshot()
    assert snapshot.requests_by_class["be"].num_running > MAX_REQUESTS
    assert len(snapshot.requests) == MAX_REQUESTS
    assert snapshot.requests[0].request_id == "rt-1"


def test_another_version_of_the_snapshot_is_refused(running: Running) -> None:
    changed = json.loads(snapshot_json(running.scheduler, running.steps, running.now_s, names_requests=True)) | {
        "novelty": 1
    }
    with pytest.raises(ClientError, match="does not fit"):
        parse_snapshot(json.dumps(changed))
