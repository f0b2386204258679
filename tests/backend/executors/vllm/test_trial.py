"""Trial steps: a machine whose costs are known is measured as it is, and left as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from backend.core.clock import VirtualClock
from backend.core.request import Request, RequestId
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.surface import RequestOutput
from backend.executors.vllm.trial import LIMIT_S, Room, trial_coefficients, trials, warm_up
from backend.policy.state.latency_model import Coefficients, LatencyModel, StepFeatures

COSTS: Coefficients = (0.03, 1e-3, 2e-6, 5e-7, 10e-6, 4e-3)
ROOM = Room(max_tokens=512, max_seqs=128, max_seq_len=4096, num_slots=12_288, block_size=16)


@dataclass
class Machine:
    """First come, first served: prompts in chunks, a token of each request that decodes. `lag`: steps that a result
    comes later, as under asynchronous scheduling."""

    clock: VirtualClock
    room: Room = ROOM
    costs: Coefficients = COSTS
    lag: int = 0
    computed: dict[Request, int] = field(default_factory=dict)
    made: dict[Request, int] = field(default_factory=dict)
    ids: set[RequestId] = field(default_factory=set)
    results: list[list[RequestOutput]] = field(default_factory=list)
    prompts: set[tuple[int, ...]] = field(default_factory=set)
    has_dropped: bool = False

    def submit(self, ticket: Ticket) -> None:
        request = ticket.request
        assert request.num_prompt + request.sampling.max_tokens <= self.room.max_seq_len
        self.computed[request] = self.made[request] = 0
        self.ids.add(request.request_id)
        assert tuple(request.prompt_token_ids) not in self.prompts, "a prompt that a prefix cache would have"
        self.prompts.add(tuple(request.prompt_token_ids))

    def abort(self, request_id: RequestId) -> None:
        for request in [request for request in self.computed if request.request_id == request_id]:
            del self.computed[request]
        self.ids.remove(request_id)

    def forget(self, request_id: RequestId) -> None:
        self.ids.remove(request_id)

    def drop_prefixes(self) -> None:
        assert not self.ids
        self.has_dropped = True

    def step(self) -> Sequence[RequestOutput]:
        left, outputs = self.room.max_tokens, []
        new = context = 0
        pairs = 0.0
        for request, num_computed in list(self.computed.items()):
            num_new = min(left, request.num_prompt + self.made[request] - num_computed)
            if not num_new:
                break
            left, new = left - num_new, new + num_new
            if num_new == 1:
                context += num_computed
            else:
                pairs += num_new * (num_computed + 0.5 * num_new)
            self.computed[request] += num_new
            if self.computed[request] == request.num_prompt + self.made[request]:
                self.made[request] += 1
                outputs.append(self._output(request))
        features = StepFeatures(new, context, pairs, 0, pairs > 0.0)
        if new:
            self.clock.advance(LatencyModel(self.costs).predict_s(features))
        self.results.append(outputs)
        return self.results.pop(0) if len(self.results) > self.lag else []

    def _output(self, request: Request) -> RequestOutput:
        has_ended = self.made[request] == request.sampling.max_tokens
        if has_ended:
            del self.computed[request]
        answer: Any = SimpleNamespace(token_ids=[1], logprobs=None, finish_reason=None)
        return cast(RequestOutput, SimpleNamespace(request_id=request.request_id, outputs=[answer], finished=has_ended))


STEPS = [
    StepFeatures(1, 500),
    StepFeatures(40, 40 * 300),
    StepFeatures(300, 0, 0.5 * 300**2, 0, True),
    StepFeatures(512, 12 * 200, 500 * (900 + 250.0), 0, True),
]


@pytest.mark.parametrize(
    ("room", "num_requests"),
    [
        (ROOM, [1, 2, 3]),
        (replace(ROOM, max_seqs=2), [1, 2]),
        (replace(ROOM, max_tokens=1), [1]),
        (replace(ROOM, num_slots=16), [1]),
    ],
)
@pytest.mark.parametrize("lag", [0, 1])
def test_sampling_and_log_probabilities_are_asked_for_before_a_client_does(
    room: Room, num_requests: list[int], lag: int
) -> None:
    machine = Machine(VirtualClock(), room=room, lag=lag)
    machine.submit = submit = Mock(side_effect=machine.submit)  # type: ignore[method-assign]
    warm_up(machine, room, 49_152)
    asked = [call.args[0].request for call in submit.call_args_list]
    assert len(asked) == sum(num_requests)
    assert all(request.sampling.wants_log_probs and request.sampling.temperature == 1.0 for request in asked)
    assert machine.has_dropped
    assert not machine.ids
    assert not machine.computed


def test_the_machine_is_measured_as_it_is() -> None:
    machine = Machine(VirtualClock())
    found = trial_coefficients(machine, ROOM, 49_152, machine.clock)
    assert found is not None
    measured, real = LatencyModel(found), LatencyModel(COSTS)
    for features in STEPS:
        assert measured.predict_s(features) == pytest.approx(real.predict_s(features), rel=0.05)


def test_the_machine_is_left_as_it_was() -> None:
    machine = Machine(VirtualClock())
    trial_coefficients(machine, ROOM, 49_152, machine.clock)
    assert machine.has_dropped
    assert not machine.ids
    assert not machine.computed


def test_results_that_come_a_step_later_do_no_harm() -> None:
    machine = Machine(VirtualClock(), lag=1)
    found = trial_coefficients(machine, ROOM, 49_152, machine.clock)
    assert found is not None
    decodes = StepFeatures(32, 32 * 70)
    assert LatencyModel(found).predict_s(decodes) == pytest.approx(LatencyModel(COSTS).predict_s(decodes), rel=0.2)


def test_on_a_slow_machine_no_trial_begins_late() -> None:
    machine = Machine(VirtualClock(), costs=(3.0, 0.1, 0.0, 0.0, 0.0, 0.0))
    assert trial_coefficients(machine, ROOM, 49_152, machine.clock) is not None
    longest_s = LatencyModel(machine.costs).predict_s(StepFeatures(ROOM.max_tokens))
    assert LIMIT_S < machine.clock.now_s() < LIMIT_S + 2 * longest_s


@pytest.mark.parametrize(
    "room",
    [
        replace(ROOM, max_seqs=1),
        replace(ROOM, num_slots=256),
        replace(ROOM, max_seq_len=64),
        replace(ROOM, max_tokens=16),
        replace(ROOM, max_tokens=1, max_seqs=1, max_seq_len=8, num_slots=16),
    ],
)
def test_a_trial_fits_into_its_room(room: Room) -> None:
    for trial in trials(room):
        assert 0 < trial.num_requests <= room.max_seqs
        assert 0 < trial.num_prompt <= room.max_tokens
        assert trial.num_prompt + trial.num_output <= room.max_seq_len
        assert trial.num_requests * (trial.num_prompt + trial.num_output) <= room.num_slots
    machine = Machine(VirtualClock(), room=room)
    assert (trial_coefficients(machine, room, 100, machine.clock) is None) == (not list(trials(room)))
