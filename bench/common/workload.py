"""Workloads: when requests arrive and how long they are. Pure: every draw comes from a Generator that is passed in.

An arrival process gives times, a `Lengths` gives sizes, and `open_loop` and `closed_loop` put them together:

    times = poisson_arrivals(rate_per_s=5.0, duration_s=600.0, rng)       gamma_arrivals(…, cv=3.0, …)
    lengths = Lengths.uniform((512, 1024), (32, 128))                     Lengths.lognormal(…), Lengths.from_rows(…)
    arrivals = open_loop(times, lengths, rng)
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import StringIO

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Row = tuple[int, int]  # (prompt tokens, output tokens)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload: it arrives at `arrival_s` and wants `num_output` (>= 1) tokens."""

    arrival_s: float
    num_prompt: int
    num_output: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """A joint distribution of prompt and output lengths; `draw(rng, n)` returns int arrays [n] of both, each >= 1."""

    draw: Callable[[Generator, int], tuple[NDArray[np.int64], NDArray[np.int64]]]

    @classmethod
    def uniform(cls, prompt: tuple[int, int], output: tuple[int, int]) -> Lengths:
        """Prompt and output independent, uniform over inclusive ranges."""

        def draw(rng: Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            prompts = rng.integers(*prompt, size=n, dtype=np.int64, endpoint=True)
            return prompts, rng.integers(*output, size=n, dtype=np.int64, endpoint=True)

        return cls(draw)

    @classmethod
    def lognormal(cls, prompt_mean: float, output_mean: float, sigma: float, max_tokens: int = 2048) -> Lengths:
        """Prompt and output independent, lognormal with the given means, cut to [1, max_tokens]."""

        def draw_one(rng: Generator, mean: float, n: int) -> NDArray[np.int64]:
            tokens: NDArray[np.float64] = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
            whole: NDArray[np.int64] = np.rint(tokens.clip(1, max_tokens)).astype(np.int64)
            return whole

        return cls(lambda rng, n: (draw_one(rng, prompt_mean, n), draw_one(rng, output_mean, n)))

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> Lengths:
        """Draw pairs from `rows` with replacement."""
        table = np.asarray(rows, np.int64).reshape(-1, 2)
        assert table.min() >= 1, "rows are (prompt, output) pairs, all >= 1"

        def draw(rng: Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            picked = table[rng.integers(0, len(table), n)]
            return picked[:, 0], picked[:, 1]

        return cls(draw)

    def with_prompts(self, scale: float) -> Lengths:
        """Return the same lengths with prompts `scale` (> 0) times as long."""

        def draw(rng: Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            prompts, outputs = self.draw(rng, n)
            return np.rint(prompts * scale).astype(np.int64).clip(1), outputs

        return self if scale == 1.0 else Lengths(draw)


PAPER_BE = Lengths.uniform((512, 1024), (32, 128))  # arXiv 2504.09590, evaluation
CHAT_SMALL = Lengths.lognormal(prompt_mean=160, output_mean=64, sigma=0.6)  # the RT mix of the CPU measurements
HEAVY_TAIL = Lengths.lognormal(prompt_mean=600, output_mean=200, sigma=1.2, max_tokens=8192)
LONG_BE = Lengths.uniform((7680, 8192), (32, 128))
SHORT = Lengths.uniform((16, 64), (8, 32))  # a question and a word or two: the last block is most of a request
NAMED_LENGTHS = {
    "paper_be": PAPER_BE,
    "short": SHORT,
    "chat_small": CHAT_SMALL,
    "heavy_tail": HEAVY_TAIL,
    "long_be": LONG_BE,
}


def poisson_arrivals(rate_per_s: float, duration_s: float, rng: Generator) -> list[float]:
    """Times of a Poisson process over [0, duration_s)."""
    return gamma_arrivals(rate_per_s, duration_s, 1.0, rng)


def gamma_arrivals(rate_per_s: float, duration_s: float, cv: float, rng: Generator) -> list[float]:
    """Times of a renewal process with gamma gaps of coefficient of variation `cv`: 1 is Poisson, above is bursty."""
    assert rate_per_s >= 0.0, f"rate {rate_per_s} must be >= 0"
    assert cv > 0.0, f"coefficient of variation {cv} must be > 0"
    times: list[float] = []
    now_s = 0.0
    while rate_per_s > 0.0:
        for gap_s in rng.gamma(1.0 / cv**2, cv**2 / rate_per_s, 256):
            now_s += float(gap_s)
            if now_s >= duration_s:
                return times
            times.append(now_s)
    return times


def on_off_arrivals(rate_per_s: float, duration_s: float, burst: float, rng: Generator) -> list[float]:
    """Times of a Poisson process whose rate is `burst` times as high in the first 10 s of each minute."""
    assert burst >= 1.0, f"burst {burst} must be >= 1"
    times_s = poisson_arrivals(rate_per_s * burst, duration_s, rng)
    kept = rng.random(len(times_s)) < 1.0 / burst
    return [time_s for time_s, keep in zip(times_s, kept, strict=True) if keep or time_s % 60.0 < 10.0]


def open_loop(times_s: Sequence[float], lengths: Lengths, rng: Generator) -> list[Arrival]:
    """Give each arrival time a drawn prompt and output length."""
    prompts, outputs = lengths.draw(rng, len(times_s))
    return [Arrival(t, int(p), int(o)) for t, p, o in zip(times_s, prompts, outputs, strict=True)]


def closed_loop(num_requests: int, lengths: Lengths, rng: Generator) -> list[Arrival]:
    """A supply of requests without times: a backlog at time 0, or the next one whenever another completes."""
    return open_loop([0.0] * num_requests, lengths, rng)


def scale_rate(arrivals: Iterable[Arrival], factor: float) -> list[Arrival]:
    """Speed a trace up by `factor` (> 0): same requests in the same order, in 1/factor of the time."""
    assert factor > 0.0, f"factor {factor} must be > 0"
    return [replace(arrival, arrival_s=arrival.arrival_s / factor) for arrival in arrivals]


def parse_trace(text: str) -> list[Arrival]:
    """Read `timestamp_s,prompt_tokens,output_tokens` CSV; without timestamps all arrive at 0. Sorted by time.

    Raises ValueError.
    """
    rows = csv.DictReader(StringIO(text))
    if missing := {"prompt_tokens", "output_tokens"} - set(rows.fieldnames or ()):
        raise ValueError(f"no CSV file with {' and '.join(sorted(missing))} in its first line")
    arrivals = []
    for row in rows:
        try:
            numbers = float(row.get("timestamp_s") or 0.0), int(row["prompt_tokens"]), int(row["output_tokens"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"line {rows.line_num}: {error}") from error
        arrivals.append(Arrival(*numbers))
    if not arrivals:
        raise ValueError("no row below the first line")
    return sorted(arrivals, key=lambda arrival: arrival.arrival_s)


def parse_lengths(text: str) -> Lengths:
    """Read `prompt_tokens,output_tokens` CSV as an empirical distribution."""
    return Lengths.from_rows([(arrival.num_prompt, arrival.num_output) for arrival in parse_trace(text)])
