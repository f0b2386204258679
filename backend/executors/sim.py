"""SimExecutor: a latency model instead of a model, seeded tokens, injected faults.

The scheduler, the KV manager and the engine in front of it are the production ones; only time and tokens are made up.
On a VirtualClock a step takes no real time; on any other clock it sleeps, so a server can be tried without a model.
"""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.core.clock import Clock, VirtualClock
from backend.core.errors import ConfigError, ExecutorError
from backend.core.executor import ExecutorCapacity
from backend.core.plan import Sequenced, StepBatch, StepResult

FIRST_WORD_ID = 259  # ids below are special, or stand for bytes (`backend.text.sim_tokenizer`)


@dataclass(frozen=True, slots=True)
class SimSettings:
    """Capacity, speed and faults of the simulated executor.

    coefficients: c0..c4 of the step time (seconds per unit; `backend.policy.state.latency_model`). noise_ratio:
    relative standard deviation of a step's time. fault_rate: part of the steps that raise ExecutorError. stall_rate,
    stall_s: part of the steps that take `stall_s` longer. A token is a function of (seed, request id, position), never
    `eos_token_id` but where the request's output is to end. counts_up: a token is instead one more than the one before.
    The first token of the prompt gives the first number. So an answer that continues at another engine shows missing
    and repeated tokens. verify: check that every attended slot holds the value written for these tokens.
    """

    num_blocks: int = 1024
    block_size: int = 16
    num_host_slots: int = 4096
    max_seq_len: int = 8192
    max_tokens_per_step: int = 2048
    max_seqs_per_step: int = 256
    host_copy_s_per_token: float = 5e-6
    fills_from_right: bool = True
    coefficients: tuple[float, float, float, float, float] = (8e-3, 60e-6, 20e-9, 2e-9, 5e-6)
    noise_ratio: float = 0.0
    fault_rate: float = 0.0
    stall_rate: float = 0.0
    stall_s: float = 0.5
    vocab_size: int = 32_000
    eos_token_id: int = 2
    seed: int = 0
    counts_up: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_seq_len", "max_tokens_per_step", "max_seqs_per_step"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.num_host_slots >= 0, "num_host_slots", "at least 0")
        for name in ("host_copy_s_per_token", "noise_ratio", "stall_s"):
            self._require(0.0 <= getattr(self, name) < math.inf, name, "at least 0 and finite")
        self._require(
            all(0.0 <= number < math.inf for number in self.coefficients), "coefficients", "at least 0 and finite"
        )
        for name in ("fault_rate", "stall_rate"):
            self._require(0.0 <= getattr(self, name) <= 1.0, name, "in [0, 1]")
        self._require(self.vocab_size > FIRST_WORD_ID + 1, "vocab_size", f"above {FIRST_WORD_ID + 1}")
        self._require(0 <= self.eos_token_id < self.vocab_size, "eos_token_id", f"in [0, {self.vocab_size})")

    def _require(self, is_met: bool, name: str, allowed: str) -> None:
        if not is_met:
            raise ConfigError(f"sim.{name}: {getattr(self, name)} is not {allowed}")


class SimExecutor:
    """Runs steps on the clock only. Deterministic: the same batches give the same tokens, times and faults."""

    def __init__(
        self,
        settings: SimSettings,
        clock: Clock,
        step_time_s: StepTime | None = None,
        output_length: OutputLength | None = None,
    ) -> None:
        """step_time_s: step time from the step's features, instead of `settings.coefficients`. output_length: after how
        many output tokens a request samples the end-of-sequence token; never, if it is not given."""
        self.settings = settings
        self.num_steps = 0
        self._clock = clock
        self._step_time_s = step_time_s or partial(linear_time_s, settings.coefficients)
        self._output_length = output_length
        self._random = random.Random(settings.seed)
        self._memory = _Memory(settings) if settings.verify else None

    def capacity(self) -> ExecutorCapacity:
        settings = self.settings
        return ExecutorCapacity(
            block_size=settings.block_size,
            num_blocks=settings.num_blocks,
            num_host_slots=settings.num_host_slots,
            max_seq_len=settings.max_seq_len,
            max_tokens_per_step=settings.max_tokens_per_step,
            max_seqs_per_step=settings.max_seqs_per_step,
            fills_from_right=settings.fills_from_right,
            host_copy_s_per_token=settings.host_copy_s_per_token,
            vocab_size=settings.vocab_size,
        )

    def execute(self, batch: StepBatch) -> StepResult:
        """Let the step's time pass; raise ExecutorError for one step in 1 / `fault_rate`, before anything is done."""
        settings = self.settings
        self.num_steps += 1
        duration_s = self._duration_s(batch)
        self._pass_time(duration_s)
        if settings.fault_rate and self._random.random() < settings.fault_rate:
            raise ExecutorError(f"injected fault in step {self.num_steps}")
        if self._memory is not None:
            self._memory.apply(batch)
        return StepResult(list(map(self._sample, batch.sequences, batch.num_new_tokens)), duration_s)

    def close(self) -> None:
        """Nothing is held."""

    def _duration_s(self, batch: StepBatch) -> float:
        settings = self.settings
        duration_s = self._step_time_s(features_of(batch))
        if settings.noise_ratio:
            duration_s *= max(0.1, self._random.gauss(1.0, settings.noise_ratio))
        if settings.stall_rate and self._random.random() < settings.stall_rate:
            duration_s += settings.stall_s
        return duration_s

    def _pass_time(self, duration_s: float) -> None:
        if isinstance(self._clock, VirtualClock):
            self._clock.advance(duration_s)
        else:
            time.sleep(duration_s)

    def _sample(self, sequence: Sequenced, num_new_tokens: int) -> int | None:
        num_known = len(sequence.token_ids)
        if sequence.num_computed + num_new_tokens < num_known:
            return None
        num_output = num_known - sequence.num_prompt + 1
        if self._output_length is not None and num_output >= self._output_length(sequence):
            return self.settings.eos_token_id
        if self.settings.counts_up:
            return word_at(self.settings.vocab_size, sequence.token_ids[0], num_known)
        return token_at(self.settings, sequence.request_id, num_known)


class SimFeatures(NamedTuple):
    """The quantities that determine a step's time; the first four are those of backend.policy.state.latency_model.

    context_tokens: context of sequences with one new token. prefill_pairs: Σ n·(start + n/2) over longer chunks of n
    tokens. copied_tokens: to the host or back. num_decodes: sequences with one new token.
    """

    new_tokens: int
    context_tokens: int
    prefill_pairs: float
    copied_tokens: int
    num_decodes: int
    num_prefills: int


StepTime = Callable[[SimFeatures], float]
OutputLength = Callable[[Sequenced], int]


def load(
    settings: SimSettings, clock: Clock, step_time_s: StepTime | None = None, output_length: OutputLength | None = None
) -> SimExecutor:
    """Return a simulated executor on `clock`."""
    return SimExecutor(settings, clock, step_time_s, output_length)


def features_of(batch: StepBatch) -> SimFeatures:
    """Return the features of a step's time."""
    num_decodes, context_tokens, prefill_pairs = 0, 0, 0.0
    for sequence, num_tokens in zip(batch.sequences, batch.num_new_tokens, strict=True):
        if num_tokens == 1:
            num_decodes += 1
            context_tokens += sequence.num_computed
        else:
            prefill_pairs += num_tokens * (sequence.num_computed + 0.5 * num_tokens)
    num_copied = len(batch.copies_out) + len(batch.copies_in)
    num_prefills = len(batch.sequences) - num_decodes
    return SimFeatures(sum(batch.num_new_tokens), context_tokens, prefill_pairs, num_copied, num_decodes, num_prefills)


def token_at(settings: SimSettings, request_id: str, position: int) -> int:
    """Return the token of a request at `position`, however it was scheduled; never the end-of-sequence token."""
    mixed = (_hash(request_id) ^ settings.seed * 0x9E3779B1) * 0x85EBCA6B + position * 0xC2B2AE35
    token_id = (mixed >> 7) % (settings.vocab_size - 1)
    return token_id + (token_id >= settings.eos_token_id)


def word_at(vocab_size: int, first_token: int, position: int) -> int:
    """Return the token at `position` where answers count up: a word of `SimTokenizer`, never a byte."""
    return FIRST_WORD_ID + (first_token * 0x9E3779B1 + position) % (vocab_size - FIRST_WORD_ID)


def linear_time_s(coefficients: tuple[float, ...], features: SimFeatures) -> float:
    """Return c0 + c1·new_tokens + c2·context_tokens + c3·prefill_pairs + c4·copied_tokens."""
    c0, c1, c2, c3, c4 = coefficients
    return (
        c0
        + c1 * features.new_tokens
        + c2 * features.context_tokens
        + c3 * features.prefill_pairs
        + c4 * features.copied_tokens
    )


_PRIME = (1 << 61) - 1


@lru_cache(maxsize=1 << 16)
def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


class _Memory:
    """KV contents: a slot holds a digest of all tokens up to its position, and of the salt, instead of K and V. So
    every misplaced slot is found."""

    def __init__(self, settings: SimSettings) -> None:
        self._digests: dict[str, list[int]] = {}  # by request, of its known tokens
        self._device = np.full(settings.num_blocks * settings.block_size, -1, np.int64)
        self._host = np.full(settings.num_host_slots, -1, np.int64)

    def apply(self, batch: StepBatch) -> None:
        """Make the step's copies and writes in their order, and check what each sequence attends to."""
        self._host[batch.copies_out.host_slots] = self._device[batch.copies_out.device_slots]
        self._device[batch.copies_in.device_slots] = self._host[batch.copies_in.host_slots]
        for sequence, num_tokens in zip(batch.sequences, batch.num_new_tokens, strict=True):
            slots, content = self._content(batch, sequence, sequence.num_computed + num_tokens)
            self._device[slots[sequence.num_computed :]] = content[sequence.num_computed :]
        for sequence, num_tokens in zip(batch.sequences, batch.num_new_tokens, strict=True):
            slots, content = self._content(batch, sequence, sequence.num_computed + num_tokens)
            wrong = np.flatnonzero(self._device[slots] != content)
            assert not len(wrong), (
                f"request {sequence.request_id!r}: position {wrong[0]} was overwritten or never written"
            )

    def _content(self, batch: StepBatch, sequence: Sequenced, end: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        assert sequence.row is not None, f"request {sequence.request_id!r} runs without a row"
        return batch.slot_table[sequence.row, :end], self._digests_of(sequence, end)

    def _digests_of(self, sequence: Sequenced, end: int) -> NDArray[np.int64]:
        digests = self._digests.setdefault(sequence.request_id, [])
        digest = digests[-1] if digests else _hash(sequence.cache_salt)
        for token_id in sequence.token_ids[len(digests) : end]:
            digest = (digest * 0x2545F491 + token_id + 1) % _PRIME
            digests.append(digest)
        return np.array(digests[:end], np.int64)
