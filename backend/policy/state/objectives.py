"""Which TTFT objectives count: those that the machine can keep, of requests that came recently.

An objective below what the machine can do binds nobody's budget. No schedule could keep it, and steps cut short for its
sake would cost all others theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from backend.core.request import Request
from backend.policy.state.latency_model import LatencyModel

RECENT_S = 3.0  # seconds: the shortest wait of these and of up to as many before them counts
_USUAL_WAIT_S = 0.25  # seconds, while nobody has said otherwise: half of the default TTFT SLO
_RESERVE = 0.1  # part of its TTFT SLO that a request can wait at least, and of what its prompt leaves that it cannot
_WEIGHT = 0.1  # of an arrival in the usual wait: one odd request hardly moves it, a dozen alike make it theirs


def time_alone_s(request: Request, latency: LatencyModel) -> float:
    """Return the time to the next token of `request` if the machine did nothing else."""
    if request.num_uncomputed == 1:
        return latency.c0 + latency.c1 + latency.c2 * request.num_computed
    return latency.c0 + latency.c5 + latency.prefill_s(request.num_uncomputed, request.num_computed)


@dataclass(slots=True, eq=False)
class Objectives:
    """How long the real-time requests that come can wait for the step under way.

    That is until half of their TTFT SLO, less where the prompt needs more than the other half, a tenth at least. What
    cannot be kept does not count. usual_wait_s: the mean of the last ten or so.
    """

    usual_wait_s: float = _USUAL_WAIT_S
    _period: int = 0
    _shortest_s: tuple[float, float] = (math.inf, math.inf)  # waits: of the period before, of this one

    def note(self, request: Request, latency: LatencyModel, now_s: float, step_s: float) -> None:
        """Learn from a real-time request that comes while a step of all real-time decodes takes `step_s`, and that
        waits for half of one."""
        slo, alone_s = request.slo, time_alone_s(request, latency)
        assert slo is not None, f"request {request.request_id!r}: real-time without an SLO"
        if alone_s + 0.5 * step_s > slo.ttft_slo_s:
            return
        left_s = (1.0 - _RESERVE) * (slo.ttft_slo_s - alone_s)
        wait_s = max(_RESERVE * slo.ttft_slo_s, min(0.5 * slo.ttft_slo_s, left_s))
        self.usual_wait_s += _WEIGHT * (wait_s - self.usual_wait_s)
        before_s, shortest_s = self._periods(now_s)
        self._period, self._shortest_s = _period(now_s), (before_s, min(shortest_s, wait_s))

    def shortest_wait_s(self, now_s: float) -> float:
        """Return the shortest wait of the last seconds; infinite where nobody came."""
        return min(self._periods(now_s))

    def _periods(self, now_s: float) -> tuple[float, float]:
        """Return the shortest wait of the last period and of that of `now_s`."""
        num_past = max(0, _period(now_s) - self._period)
        return self._shortest_s if not num_past else (self._shortest_s[1] if num_past == 1 else math.inf, math.inf)


def _period(now_s: float) -> int:
    return int(now_s // RECENT_S)
