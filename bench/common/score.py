"""Scores of a run, from the token times of its requests: the same for the simulator and for a live server. Pure.

Real-time requests are scored by their arrival in the window [start_s, end_s); those that failed or did not finish count
as misses. Best-effort throughput counts tokens emitted within the window, of requests of any arrival.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.common.stats import percentiles, share


@dataclass(frozen=True, slots=True)
class Slos:
    """Objectives of a real-time request, in seconds."""

    ttft_slo_s: float
    tpot_slo_s: float


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What happened to one request; times in seconds on the run's axis. `error` is set when it failed."""

    request_id: str
    is_rt: bool
    arrival_s: float
    num_prompt: int
    num_output: int
    token_times_s: list[float] = field(default_factory=list)
    finished_s: float | None = None
    error: str | None = None
    slos: Slos | None = None  # its own; None: those of the run

    @property
    def is_finished(self) -> bool:
        return self.finished_s is not None and self.error is None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        return self.token_times_s[0] - self.arrival_s if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; 0 for a one-token answer, None while unfinished."""
        if not self.is_finished or not self.token_times_s:
            return None
        gaps = len(self.token_times_s) - 1
        return (self.token_times_s[-1] - self.token_times_s[0]) / gaps if gaps else 0.0

    @property
    def normalised_latency_s(self) -> float | None:
        """End-to-end time per output token."""
        if not self.is_finished or not self.token_times_s:
            return None
        return (self.token_times_s[-1] - self.arrival_s) / len(self.token_times_s)

    def meets_ttft(self, slos: Slos) -> bool:
        return self.ttft_s is not None and self.ttft_s <= (self.slos or slos).ttft_slo_s

    def meets_tpot(self, slos: Slos) -> bool:
        return self.tpot_s is not None and self.tpot_s <= (self.slos or slos).tpot_slo_s

    def meets_both(self, slos: Slos) -> bool:
        return self.meets_ttft(slos) and self.meets_tpot(slos)


@dataclass(frozen=True, slots=True)
class Window:
    """The scored part of a run, seconds, half-open."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def __contains__(self, time_s: float) -> bool:
        return self.start_s <= time_s < self.end_s

    def num_within(self, times_s: Sequence[float]) -> int:
        """Return how many of `times_s`, ascending, are in the window."""
        return bisect_left(times_s, self.end_s) - bisect_left(times_s, self.start_s)


def score_rt(records: Iterable[RequestRecord], slos: Slos, window: Window) -> dict[str, Any]:
    """Attainment and latencies of the real-time requests that arrived in the window."""
    scored = [r for r in records if r.is_rt and r.arrival_s in window]
    ttft = [r.meets_ttft(slos) for r in scored]
    tpot = [r.meets_tpot(slos) for r in scored]
    both = [first and rest for first, rest in zip(ttft, tpot, strict=True)]
    return {
        "num_rt": len(scored),
        "num_rt_unfinished": sum(not r.is_finished for r in scored),
        "rt_requests_per_s": len(scored) / window.duration_s,
        "rt_attainment": {"ttft": share(ttft), "tpot": share(tpot), "both": share(both)},
        "ttft_s": percentiles(_present(r.ttft_s for r in scored)),
        "tpot_s": percentiles(_present(r.tpot_s for r in scored)),
        "itl_s": percentiles(_gaps(scored)),
        "normalised_latency_s": percentiles(_present(r.normalised_latency_s for r in scored)),
    }


def score_be(records: Iterable[RequestRecord], window: Window) -> dict[str, Any]:
    """Throughput of the best-effort requests within the window; tokens are output tokens."""
    be = [r for r in records if not r.is_rt]
    finished = [r for r in be if r.is_finished and r.finished_s is not None and r.finished_s in window]
    num_tokens = sum(window.num_within(r.token_times_s) for r in be)
    return {
        "num_be_finished": len(finished),
        "num_be_failed": sum(r.error is not None for r in be),
        "be_requests_per_s": len(finished) / window.duration_s,
        "be_tokens_per_s": num_tokens / window.duration_s,
    }


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _gaps(records: Sequence[RequestRecord]) -> list[float]:
    return [float(gap) for r in records for gap in np.diff(r.token_times_s)]
