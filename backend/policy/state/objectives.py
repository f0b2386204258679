"""Which TTFT objectives count: those that the machine can keep, of requests that came recently.

An objective below what the machine can do binds nobody's budget. No schedule could keep it, and steps cut short for its
sake would cost all others theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from backend.core.request import Request
from backend.policy.state.latency_model import LatencyModel

RECENT_S = 3.0  # seconds: the shortest wait of these and of up to as many before them counts
_USUAL_TTFT_S = 0.5  # seconds, while nobody has said otherwise
_WEIGHT = 0.1  # of an arrival in the usual SLO: one odd request hardly moves it, a dozen alike make it theirs
_ODD = 2.0  # times the usual SLO: no looser one counts, as it would let steps grow for all others
_IN_A_ROW = 2.0  # prompts as long as its own that a request may have to wait for, itself among them


def time_alone_s(request: Request, latency: LatencyModel) -> float:
    """Return the time to the next token of `request` if the machine did nothing else."""
    if request.num_uncomputed == 1:
        return latency.c0 + latency.c1 + latency.c2 * request.num_computed
    return latency.c0 + latency.c5 + latency.prefill_s(request.num_uncomputed, request.num_computed)


class Recent(NamedTuple):
    """The requests of some seconds. shortest_wait_s: for the step under way; infinite where nobody came, as is
    shortest_ttft_s, the tightest TTFT SLO.

    longest_prefill_s: for a prompt and one in front of it, at most the TTFT SLO.
    """

    shortest_wait_s: float = math.inf
    longest_prefill_s: float = 0.0
    shortest_ttft_s: float = math.inf

    def with_more(self, other: Recent) -> Recent:
        """Return what holds for the requests of both."""
        return Recent(
            min(self.shortest_wait_s, other.shortest_wait_s),
            max(self.longest_prefill_s, other.longest_prefill_s),
            min(self.shortest_ttft_s, other.shortest_ttft_s),
        )


_NOBODY = Recent()


@dataclass(slots=True, eq=False)
class Objectives:
    """How long the real-time requests that come can wait for the step under way, and what their prompts need.

    They can wait until half of their TTFT SLO, less where the prompt needs more than the other half. What cannot be
    kept does not count. usual_ttft_s: the mean SLO of the last ten or so.
    """

    usual_ttft_s: float = _USUAL_TTFT_S
    _period: int = 0
    _before: Recent = _NOBODY  # of the period before
    _last: Recent = _NOBODY  # of the last one in which somebody came

    def note(self, request: Request, latency: LatencyModel, now_s: float, step_s: float) -> None:
        """Learn from a real-time request that comes while a step of all real-time decodes takes `step_s`, and that
        waits for half of one."""
        slo, alone_s = request.slo, time_alone_s(request, latency)
        assert slo is not None, f"request {request.request_id!r}: real-time without an SLO"
        if alone_s + 0.5 * step_s > slo.ttft_slo_s:
            return
        wait_s = min(0.5 * slo.ttft_slo_s, slo.ttft_slo_s - alone_s)
        self.usual_ttft_s += _WEIGHT * (min(slo.ttft_slo_s, self.loosest_ttft_s) - self.usual_ttft_s)
        self._before, last = self._periods(now_s)
        longest_s = min(slo.ttft_slo_s, _IN_A_ROW * alone_s)
        self._last = last.with_more(Recent(wait_s, longest_s, slo.ttft_slo_s))
        self._period = _period(now_s)

    @property
    def loosest_ttft_s(self) -> float:
        """The loosest SLO that counts."""
        return _ODD * self.usual_ttft_s

    def wait_s(self, now_s: float, idle_s: float) -> float:
        """Return how long one that comes now can wait; at least `idle_s` where nobody came for seconds."""
        wait_s = self.recent(now_s).shortest_wait_s
        return min(wait_s, 0.5 * self.loosest_ttft_s) if wait_s < math.inf else max(0.5 * self.usual_ttft_s, idle_s)

    def next_ttft_s(self, now_s: float) -> float:
        """Return the SLO that the next one may have."""
        return min(self.recent(now_s).shortest_ttft_s, self.loosest_ttft_s)

    def recent(self, now_s: float) -> Recent:
        """Return what holds for the requests of the last seconds."""
        before, last = self._periods(now_s)
        return before.with_more(last)

    def _periods(self, now_s: float) -> tuple[Recent, Recent]:
        """Return the last period and that of `now_s`."""
        num_past = max(0, _period(now_s) - self._period)
        return (self._before, self._last) if not num_past else (self._last if num_past == 1 else _NOBODY, _NOBODY)


def _period(now_s: float) -> int:
    return int(now_s // RECENT_S)
