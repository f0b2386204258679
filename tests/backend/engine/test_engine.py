"""The engine on the simulator, end to end: everything but the model is the production code."""

from __future__ import annotations

import random

import pytest

from backend.core.errors import InvalidRequestError, OverloadedError
from backend.core.plan import StepBatch, StepResult
from backend.core.request import FinishReason, Request, SamplingParams
from backend.engine.engine import Cancel, Inspect, Submit
from backend.executors.sim import token_at
from backend.policy.settings import POLICY_NAMES
from backend.policy.view import Traffic
from tests.backend.factories import EOS, Harness, be, rt


def random_requests(seed: int, num_requests: int = 20) -> list[Request]:
    draw = random.Random(seed)
    return [
        draw.choice((rt, be))(draw.randint(1, 300), draw.randint(1, 60), request_id=f"r{index}")
        for index in range(num_requests)
    ]


def expected_tokens(harness: Harness, request: Request) -> list[int]:
    positions = range(request.num_prompt, request.num_prompt + request.sampling.max_tokens)
    return [token_at(harness.executor.settings, request.request_id, position) for position in positions]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_request_gets_its_own_tokens_whatever_is_preempted(policy: str) -> None:
    harness = Harness(policy=policy, num_blocks=40, num_host_slots=200, max_seq_len=400, max_tokens_per_step=128)
    requests = random_requests(seed=3)
    for request in requests:
        harness.submit(request)
        harness.step(2)
    harness.run()
    for request in requests:
        assert harness.tokens[request.request_id] == expected_tokens(harness, request)
        assert harness.reasons[request.request_id] is FinishReason.LENGTH
    assert harness.num_free_blocks() == 40


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_nth_failing_step_ends_its_requests_and_no_others(policy: str) -> None:
    num_steps = _steps_of(policy, fail_at=None)
    for failing_step in range(1, num_steps + 1, 3):
        _steps_of(policy, fail_at=failing_step)


def _steps_of(policy: str, fail_at: int | None) -> int:
    harness = Harness(policy=policy, num_blocks=12, num_host_slots=64, max_seq_len=160, max_tokens_per_step=64)
    requests = [rt(40, 6), be(100, 8), be(60, 5), rt(20, 4)]
    harness.fail_at = fail_at
    for request in requests:
        harness.submit(request)
        harness.step()
    num_steps = harness.run()
    assert sorted(harness.ends.values()) == [1, 1, 1, 1]
    for request in requests:
        if harness.reasons[request.request_id] is not None:
            assert harness.tokens[request.request_id] == expected_tokens(harness, request)
    assert harness.num_free_blocks() == 12
    return num_steps + len(requests)


@pytest.mark.parametrize("num_steps_before", [0, 1, 2, 5, 9])
def test_a_cancelled_request_frees_everything_at_once(num_steps_before: int) -> None:
    harness = Harness(num_blocks=12, max_seq_len=160, max_tokens_per_step=64)
    victim, other = be(100, 20), rt(80, 5)
    harness.submit(victim)
    harness.step(num_steps_before)
    harness.submit(other)
    harness.step(1)  # preempts where memory is short
    harness.engine.post(Cancel(victim.request_id))
    harness.run()
    assert harness.reasons[victim.request_id] is FinishReason.CANCELLED
    assert harness.tokens[other.request_id] == expected_tokens(harness, other)
    assert harness.num_free_blocks() == 12


def test_cancelling_unknown_and_finished_requests_is_ignored() -> None:
    harness = Harness()
    request = be(10, 2)
    harness.submit(request)
    harness.run()
    harness.engine.post(Cancel(request.request_id))
    harness.run()
    assert harness.ends[request.request_id] == 1


def test_a_request_stops_at_the_end_of_sequence_token() -> None:
    harness = Harness(output_lengths={"a": 3})
    harness.submit(be(10, 20, request_id="a"))
    harness.run()
    assert harness.tokens["a"][-1] == EOS
    assert len(harness.tokens["a"]) == 3
    assert harness.reasons["a"] is FinishReason.STOP


@pytest.mark.parametrize(
    ("sampling", "num_tokens", "reason"),
    [
        (SamplingParams(max_tokens=6, ignore_eos=True), 6, FinishReason.LENGTH),
        (SamplingParams(max_tokens=6, min_tokens=5), 5, FinishReason.STOP),
        (SamplingParams(max_tokens=3), 3, FinishReason.STOP),
        (SamplingParams(max_tokens=2), 2, FinishReason.LENGTH),
    ],
)
def test_stop_conditions(sampling: SamplingParams, num_tokens: int, reason: FinishReason) -> None:
    harness = Harness(output_lengths={"a": 3})  # every token from the third on is the end-of-sequence token
    harness.submit(be(10, request_id="a", sampling=sampling))
    harness.run()
    assert len(harness.tokens["a"]) == num_tokens
    assert harness.reasons["a"] is reason


def test_a_stop_token_of_the_request_ends_it() -> None:
    harness = Harness()
    third = token_at(harness.executor.settings, "a", 10 + 2)
    harness.submit(be(10, request_id="a", sampling=SamplingParams(max_tokens=9, stop_token_ids=frozenset({third}))))
    harness.run()
    assert len(harness.tokens["a"]) == 3


def test_shutting_down_ends_every_request_once() -> None:
    harness = Harness(num_blocks=12, max_seq_len=160)
    requests = [rt(40, 9), be(100, 9), be(60, 9)]
    harness.submit(*requests)
    harness.step(2)
    harness.engine.stop()
    harness.engine.run()
    assert [harness.ends[request.request_id] for request in requests] == [1, 1, 1]


@pytest.mark.parametrize("error", [IndexError("row 256"), AssertionError("position 9"), MemoryError()], ids=repr)
def test_whatever_a_step_raises_ends_its_requests_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    harness = Harness()
    lost, later = rt(10, 4), rt(10, 4)
    harness.submit(lost)
    harness.step()

    def fail(_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(harness.executor, "execute", fail)
        harness.step()
    assert harness.ends[lost.request_id] == 1
    assert harness.reasons[lost.request_id] is None
    harness.submit(later)
    harness.run()
    assert harness.tokens[later.request_id] == expected_tokens(harness, later)
    assert harness.num_free_blocks() == harness.scheduler.kv.config.num_blocks


def test_what_looks_at_the_scheduler_or_records_a_step_may_fail_without_an_end_to_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(harness.engine, "_record", fail)
    harness.engine.post(Inspect(fail))
    request = rt(10, 4)
    harness.submit(request)
    harness.run()
    assert harness.tokens[request.request_id] == expected_tokens(harness, request)


@pytest.mark.parametrize("broken", ["policy", "statistics", "deadlines"])
def test_a_request_that_cannot_be_queued_ends_alone(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    before, lost, after = be(10, 4), be(10, 4, deadline_s=9.0), be(10, 4, deadline_s=9.0)
    harness.submit(before)
    harness.step()
    view = harness.scheduler.view
    place, name = {
        "policy": (view.be_waiting, "_order"),
        "statistics": (Traffic, "note_arrival"),
        "deadlines": (view.be_deadlines, "_order"),
    }[broken]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, lambda *_: {}["nothing"])
        harness.submit(lost)
        harness.step()
    assert harness.ends == {lost.request_id: 1}
    assert (len(view.be_waiting), len(view.be_deadlines)) == (0, 0)
    harness.submit(after)
    harness.run()
    for request in (before, after):
        assert harness.tokens[request.request_id] == expected_tokens(harness, request)


def test_best_effort_begins_in_order_of_arrival_so_that_a_short_request_is_passed_by_none() -> None:
    harness = Harness(num_blocks=20, max_seq_len=160)
    before, short, after = [
        [be(20, n, request_id=f"{n}.{i}") for i in range(m)] for n, m in ((120, 6), (2, 1), (119, 6))
    ]
    for request in before + short + after:
        harness.submit(request)
    harness.run()
    began_s = [request.first_scheduled_s or 0.0 for request in before + short + after]
    assert began_s == sorted(began_s)
    assert began_s[0] < began_s[6] < began_s[-1]


def test_the_inbox_is_bounded_in_bytes() -> None:
    harness = Harness(max_waiting_bytes=100_000)
    harness.submit(be(1000))
    with pytest.raises(OverloadedError, match="engine inbox: 56000 bytes are waiting, of 100000"):
        harness.engine.post(Submit(be(1000)))
    harness.step()
    harness.submit(be(1000))
    harness.run()
    assert sum(harness.ends.values()) == 2


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_sequence_that_cannot_go_on_ends_alone(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(policy=policy, num_blocks=40, num_host_slots=64, max_seq_len=160, max_tokens_per_step=64)
    execute = harness.executor.execute

    def execute_but_for_a(batch: StepBatch) -> StepResult:
        result = execute(batch)
        stuck = [i for i, s in enumerate(batch.sequences) if s.request_id == "a" and len(s.token_ids) == 43]
        token_ids = [None if index in stuck else token_id for index, token_id in enumerate(result.token_ids)]
        return StepResult(token_ids, result.duration_s, errors=dict.fromkeys(stuck, InvalidRequestError("stuck")))

    monkeypatch.setattr(harness.executor, "execute", execute_but_for_a)
    harness.submit(rt(40, 9, request_id="a"), be(50, 8, request_id="b"), rt(20, 7, request_id="c"))
    harness.run()
    assert [len(harness.tokens[name]) for name in "abc"] == [3, 8, 7]
    assert [harness.reasons[name] for name in "abc"] == [None, FinishReason.LENGTH, FinishReason.LENGTH]
    assert harness.num_free_blocks() == 40
