"""Which latency objectives count: those that the machine can keep at all, of requests that came recently.

An objective below what the machine can do alone binds nobody's budget. No schedule could keep it, and steps cut short
for its sake would cost all others theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from backend.core.request import Request, Slo
from backend.policy.state.latency_model import LatencyModel

_PERIOD_S = 3.0  # the tightest TTFT SLO binds for one to two of these
_USUAL_TTFT_SLO_S = 0.5  # while nobody has said otherwise
_TTFT_WEIGHT = 0.1  # of an arrival in the usual TTFT SLO: one odd request hardly moves it, a dozen alike make it theirs
_TTFT_MEMORY_S = 600.0
_HALF = 0.5  # of a step: what a request waits for the one under way, on average
_TPOT_WEIGHT = 0.05  # of an arrival in the usual TPOT SLO


def time_alone_s(request: Request, latency: LatencyModel) -> float:
    """Return the time to the next token of `request` if the machine did nothing else."""
    if request.num_uncomputed == 1:
        return latency.c0 + latency.c1 + latency.c2 * request.num_computed
    return latency.c0 + latency.c5 + latency.prefill_s(request.num_uncomputed, request.num_computed)


def is_hopeless(request: Request, latency: LatencyModel) -> bool:
    """Return whether a new request asks for more than a machine with nothing else to do could give."""
    slo = request.slo
    return slo is not None and (time_alone_s(request, latency) > slo.ttft_slo_s or not _can_decode_at(slo, latency))


def _can_decode_at(slo: Slo, latency: LatencyModel) -> bool:
    return latency.c0 + latency.c1 <= min(slo.tpot_slo_s, slo.itl_slo_s or math.inf)


@dataclass(slots=True, eq=False)
class Objectives:
    """The objectives of real-time requests that came recently, without those that cannot be kept.

    longest_prompt: of what the cache did not have; shrinks by 2 % with each arrival. usual_tpot_slo_s: the harmonic
    mean of the last twenty or so.
    """

    longest_prompt: int = 0
    _period: int = 0
    _tightest_s: list[float] = field(default_factory=lambda: [math.inf, math.inf])  # TTFT SLOs: last period, this one
    _usual_ttft_slo_s: float = _USUAL_TTFT_SLO_S
    _last_s: float = 0.0
    _tokens_per_s: float = 0.0

    def note(self, request: Request, latency: LatencyModel, now_s: float, step_s: float) -> None:
        """Learn from a real-time request that comes while a step of all real-time decodes takes `step_s`."""
        slo = request.slo
        assert slo is not None, f"request {request.request_id!r}: real-time without an SLO"
        if _can_decode_at(slo, latency):
            weight = _TPOT_WEIGHT if self._tokens_per_s else 1.0
            self._tokens_per_s += weight * (1.0 / slo.tpot_slo_s - self._tokens_per_s)
        if time_alone_s(request, latency) + _HALF * step_s <= slo.ttft_slo_s:
            self.longest_prompt = max(request.num_uncomputed, int(0.98 * self.longest_prompt))
            usual_s = self.usual_ttft_slo_s(now_s)
            self._usual_ttft_slo_s = usual_s + _TTFT_WEIGHT * (slo.ttft_slo_s - usual_s)
            self._last_s = now_s
            self._tightest_s = self._periods(now_s)
            self._tightest_s[1] = min(self._tightest_s[1], slo.ttft_slo_s)
            self._period = _period(now_s)

    def tightest_ttft_slo_s(self, now_s: float) -> float:
        """Return the smallest TTFT SLO of the last seconds; infinite where none came."""
        return min(self._periods(now_s))

    def usual_ttft_slo_s(self, now_s: float) -> float:
        """Return the mean TTFT SLO of the last ten or so; over minutes without any it is forgotten."""
        kept = math.exp(min(0.0, self._last_s - now_s) / _TTFT_MEMORY_S)
        return _USUAL_TTFT_SLO_S + kept * (self._usual_ttft_slo_s - _USUAL_TTFT_SLO_S)

    @property
    def usual_tpot_slo_s(self) -> float:
        return 1.0 / self._tokens_per_s if self._tokens_per_s else math.inf

    def _periods(self, now_s: float) -> list[float]:
        """Return the smallest TTFT SLO of the last period and of that of `now_s`."""
        num_past = _period(now_s) - self._period
        return (
            [*self._tightest_s, math.inf, math.inf][min(num_past, 2) :][:2] if num_past > 0 else list(self._tightest_s)
        )


def _period(now_s: float) -> int:
    return int(now_s // _PERIOD_S)
