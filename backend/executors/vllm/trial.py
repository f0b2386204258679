"""Trial steps: what a step of vLLM costs on this machine, measured before the first request comes.

Without them the latency model starts from a guess and learns from clients' requests, whose objectives it then misses.
vLLM's own scheduler runs the trials, so each is made to be certain of what its steps hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from backend.core.clock import Clock
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.surface import RequestOutput
from backend.policy.state.latency_model import Coefficients, LatencyModel, StepFeatures

LIMIT_S = 15.0  # no trial begins later
_NUM_TURNS = 2
_NUM_DECODES = 6  # steps of a trial of decodes
_SPARE_STEPS = 4  # of its requests, for an engine that schedules ahead
_NUM_PASSES = 20  # over the samples, until the model's descent has settled
_SHORT_PROMPT = 64


class TrialRuntime(Protocol):
    """vLLM, as the trials use it; see `runtime.py`."""

    def submit(self, ticket: Ticket) -> None: ...
    def abort(self, request_id: RequestId) -> None: ...
    def forget(self, request_id: RequestId) -> None: ...
    def step(self) -> Sequence[RequestOutput]: ...
    def drop_prefixes(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Room:
    """The most that a step, a request and the KV pool hold: tokens, requests, tokens, tokens. And the KV of a block."""

    max_tokens: int
    max_seqs: int
    max_seq_len: int
    num_slots: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Trial:
    """Requests that run together, with prompts of `num_prompt` tokens. One output token each: a step of a prompt is
    timed. More: steps of decodes are."""

    num_requests: int
    num_prompt: int
    num_output: int


Sample = tuple[StepFeatures, float]  # what a step held, and its seconds


def warm_up(runtime: TrialRuntime, room: Room, vocab_size: int) -> None:
    """Run what vLLM compiles when it is first asked for: sampling and log-probabilities, of one to three requests.

    The first client to ask would stall the streams of all others for seconds. PyTorch compiles for a batch of one, for
    that of another size, and then for any.
    """
    prompts = _Prompts(vocab_size)
    sampling = SamplingParams(max_tokens=1, temperature=1.0, ignore_eos=True, wants_log_probs=True)
    for num_requests in range(1, min(3, room.max_seqs, room.max_tokens, room.num_slots // room.block_size) + 1):
        requests = [prompts.request(1, sampling) for _ in range(num_requests)]
        for request in requests:
            runtime.submit(Ticket(request))
        num_left = num_requests
        while num_left:
            num_left -= len(runtime.step())
        for request in requests:
            runtime.forget(request.request_id)
    runtime.drop_prefixes()


def trial_coefficients(runtime: TrialRuntime, room: Room, vocab_size: int, clock: Clock) -> Coefficients | None:
    """Return c0..c5 of the latency model as the trials measure them; None where there is no room for a trial."""
    start_s, samples = clock.now_s(), list[Sample]()
    prompts, in_room = _Prompts(vocab_size), list(trials(room))
    for trial in in_room[:1]:  # warms the machine up
        _run(runtime, trial, prompts, clock)
    for trial in _NUM_TURNS * in_room:
        if clock.now_s() - start_s > LIMIT_S:
            break
        samples += _run(runtime, trial, prompts, clock)
    runtime.drop_prefixes()
    return _fit(samples) if samples else None


def trials(room: Room) -> Iterator[Trial]:
    """Yield the trials that there is room for, short ones first."""
    longest = min(room.max_tokens, room.max_seq_len - 2 * _NUM_DECODES - _SPARE_STEPS, room.num_slots // 2)
    for num_prompt in sorted({longest // 16, longest // 4, longest}):
        if num_prompt > 0:
            yield Trial(1, num_prompt, num_output=1)
    for num_requests, num_prompt in ((1, _SHORT_PROMPT), (1, longest), (8, _SHORT_PROMPT), (32, _SHORT_PROMPT)):
        # Nobody waits for KV or a batch slot, and nobody ends while another's prompt is computed.
        num_output = num_requests * num_prompt // max(1, room.max_tokens) + _NUM_DECODES + _SPARE_STEPS
        num_kv = num_requests * (num_prompt + num_output)
        if num_requests <= room.max_seqs and num_kv <= room.num_slots // 2 and 0 < num_prompt <= longest:
            yield Trial(num_requests, num_prompt, num_output)


class _Prompts:
    """Prompts that share no prefix, the same at each start."""

    def __init__(self, vocab_size: int) -> None:
        self._rng = np.random.default_rng(0)
        self._vocab_size = vocab_size
        self._num_made = 0

    def request(self, num_prompt: int, sampling: SamplingParams) -> Request:
        self._num_made += 1
        prompt = tuple(self._rng.integers(self._vocab_size, size=num_prompt).tolist())
        request_id = RequestId(f"trial{self._num_made}")
        return Request(request_id, PriorityClass.BEST_EFFORT, prompt, sampling, arrival_s=0.0)


def _run(runtime: TrialRuntime, trial: Trial, prompts: _Prompts, clock: Clock) -> list[Sample]:
    """Run a trial; return its samples."""
    sampling = SamplingParams(max_tokens=trial.num_output, ignore_eos=True)
    requests = [prompts.request(trial.num_prompt, sampling) for _ in range(trial.num_requests)]
    has_decodes = trial.num_output > 1
    for request in requests:
        runtime.submit(Ticket(request))
    try:
        return _decodes(runtime, trial, clock) if has_decodes else [_prompt(runtime, trial, clock)]
    finally:
        for request in requests:
            (runtime.abort if has_decodes else runtime.forget)(request.request_id)


def _prompt(runtime: TrialRuntime, trial: Trial, clock: Clock) -> Sample:
    start_s = clock.now_s()
    while not runtime.step():
        pass  # vLLM schedules a step ahead, or waits for memory
    n = trial.num_prompt
    return StepFeatures(n, 0, 0.5 * n * n, 0, has_prefill=True), clock.now_s() - start_s


def _decodes(runtime: TrialRuntime, trial: Trial, clock: Clock) -> list[Sample]:
    """Time steps from the one on in which every request decodes."""
    num_tokens: dict[str, int] = {}

    def step() -> None:
        for output in runtime.step():
            num_tokens[output.request_id] = num_tokens.get(output.request_id, 0) + len(output.outputs[0].token_ids)

    while len(num_tokens) < trial.num_requests:
        step()
    samples = []
    for _ in range(_NUM_DECODES):
        num_context = trial.num_requests * trial.num_prompt + sum(num_tokens.values()) - trial.num_requests
        start_s = clock.now_s()
        step()
        samples.append((StepFeatures(trial.num_requests, num_context), clock.now_s() - start_s))
    return samples


def _fit(samples: Sequence[Sample]) -> Coefficients:
    model = LatencyModel()
    for _ in range(_NUM_PASSES):
        for features, duration_s in samples:
            model.observe(features, max(duration_s, 1e-6))
    return model.coefficients
