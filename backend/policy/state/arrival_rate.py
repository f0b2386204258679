"""How much arrives per second, and what it will hold at once by Little's law."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backend.core.request import Request
from backend.policy.state.objectives import RECENT_S

_MEMORY_S = 20.0  # seconds that the rates go back
_FIRST_PART = 0.25  # of max_tokens: how long outputs are taken to be before any has ended; preemption can mend as much


def kept(last_s: float, now_s: float, memory_s: float) -> float:
    """Return the part of a sum of the last `memory_s` or so that was up to date at `last_s` and is left at `now_s`."""
    return math.exp(min(0.0, (last_s - now_s) / memory_s))


def rate_of_one(elapsed_s: float, last_s: float, now_s: float, memory_s: float) -> float:
    """Return the rate at `now_s` of a decayed sum of 1 over `elapsed_s` of arrivals, the last at `last_s`."""
    return kept(last_s, now_s, memory_s) / (memory_s * (1.0 - math.exp(-elapsed_s / memory_s)))


def _use(request: Request, num_output: float) -> NDArray[np.float64]:
    """Return how many batch slots and KV slots `request` holds with an output of n tokens, each times the steps.

    With a prompt of p tokens it holds a batch slot for n steps, and Σ (p + i) ≈ n·(p + n/2) KV slots · steps.
    """
    return np.array([num_output, num_output * (request.num_prompt + 0.5 * num_output)])


@dataclass(slots=True, eq=False)
class ArrivalRate:
    """What the arrivals of one class will hold, averaged over the last _MEMORY_S or so.

    Outputs are often shorter than they may be. By how much, those that ended tell: by what they held, in parts of what
    they might have held. One ratio of lengths for all would let many short outputs of one client, with a large
    max_tokens, speak for the requests of others. A short one that ended says little about the long ones that run.
    So the first guess counts with it, as one request that might hold the mean of the guesses. It counts for less the
    more have ended.
    """

    _first_s: float = float("inf")
    _last_s: float = 0.0
    _num: float = 0.0  # decayed sums: arrivals,
    _most: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # what they hold at most,
    _guessed: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # by the first guess,
    _ended_most: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # what those that ended hold at most,
    _ended: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # and what they did hold
    _expected: tuple[float, float] = (0.0, 0.0)  # of arrivals

    def note(self, request: Request) -> None:
        """Count an arrival."""
        self._first_s = min(self._first_s, request.arrival_s)
        left = kept(self._last_s, request.arrival_s, _MEMORY_S)
        self._last_s = max(self._last_s, request.arrival_s)
        max_tokens = request.sampling.max_tokens
        self._num = left * self._num + 1.0
        self._most = left * self._most + _use(request, max_tokens)
        self._guessed = left * self._guessed + _use(request, _FIRST_PART * max_tokens)
        self._ended_most, self._ended = left * self._ended_most, left * self._ended
        self._expect()

    def note_end(self, request: Request) -> None:
        """Count the end of a request that came before, whatever ended it."""
        self._ended_most += _use(request, request.sampling.max_tokens)
        self._ended += _use(request, request.num_output)
        self._expect()

    def _expect(self) -> None:
        mean, guessed = self._most / self._num, self._guessed / self._num
        weight = guessed * mean / (mean + self._ended_most)
        parts = (self._ended + weight * guessed / mean) / (self._ended_most + weight)
        batch_slots, kv_slots = self._most * parts
        self._expected = float(batch_slots), float(kv_slots)

    def per_step_s(self, now_s: float) -> tuple[float, float]:
        """Return the batch slots and the KV slots that will be in use at once for each second that a step takes."""
        batch_slots, kv_slots = self._expected
        if not batch_slots:
            return 0.0, 0.0
        elapsed_s = max(now_s - self._first_s, RECENT_S)  # the first few say little about a rate
        rate = rate_of_one(elapsed_s, self._last_s, now_s, _MEMORY_S)
        return rate * batch_slots, rate * kv_slots
