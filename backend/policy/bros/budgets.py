"""How long a step may take, and which part of that late real-time and best-effort work may use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.policy.bros.kv_forecast import UNUSED_OF_BLOCK
from backend.policy.state import table_loops
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

_CATCH_UP = 0.8  # part of its TPOT SLO that a late decode asks steps to take, so that it gains on its schedule
_SPARE_USE = 0.9  # part of the decodes' slack that late and best-effort work may use: docs/algorithm.md, "Spare share"
_PROMPTS_WAITED_FOR = 2.0  # longest prompts, in a row, that half of the decodes can wait for beside best-effort work
_IDLE_STEPS = 8.0  # empty steps that an idle machine's step may always take: best-effort loses an eighth at most
_MAX_IDLE_S = 0.25  # seconds: no more than that, half of the usual TTFT SLO
_PREFILL_RESERVE = 1.1  # steps leave this many times the time that arriving real-time prompts take
_KV_RESERVE = 0.6  # part of the KV slots that real-time holds without best-effort: left free, docs/decisions/0002.
_MAX_MARGIN = 0.3  # Part of a slack left unplanned, at most, where the latency model errs
_ROUNDING = 1.0 + 1e-9  # the same times, added up in another order


class Sustainable(NamedTuple):
    """Mean step times, in seconds, beyond which arriving real-time requests fill the batch slots or the KV slots."""

    by_batch_slots: float
    by_kv_slots: float


class Budgets:
    """Seconds that this step may take: for real-time in time, for late real-time, for best-effort.

    They tighten as requests with deadlines enter. None is ever below one step of all real-time decodes. Late and
    best-effort work may use `_SPARE_USE` of the decodes' slack only. Deadlines are cumulative, so steps become no
    shorter by that in the long run. Slack settles at 1 / _SPARE_USE, and the reserve lets in a long prompt.

    use: part of a slack that may be planned with. The rest is a margin that grows with the model's own overshoot.
    """

    def __init__(self, view: SchedulerView, decodes: Rows, now_s: float) -> None:
        self._view = view
        self._now_s = now_s
        self._decodes = decodes
        self.use = 1.0 - max(view.settings.budget_margin, min(_MAX_MARGIN, view.latency.overshoot_ratio))
        self._decodes_s = view.table.rt_step_s(view.latency, decodes) * _ROUNDING
        self._shortest_s = self._shortest()
        self.in_time_s, self._best_effort_s = self._caps_s()
        self.late_s = self.in_time_s

    def _shortest(self) -> float:
        """Return the step below which real-time cannot go on: of all decodes, with time for the prompts that arrive.

        Who asks for less does not get it from the others, unless most of them ask for as little.
        """
        traffic = self._view.traffic
        prefill_share = _PREFILL_RESERVE * traffic.rt_arrivals.prefill_share(self._now_s, self._view.latency)
        with_prefills_s = self._decodes_s / max(1.0 - prefill_share, 1e-3)
        return min(with_prefills_s, _CATCH_UP * traffic.rt_objectives.usual_tpot_slo_s)

    def _caps_s(self) -> tuple[float, float]:
        """Return the longest steps, for real-time and for best-effort, that let in what may come."""
        cap_s, be_cap_s = responsiveness_caps_s(self._view, self._now_s)
        objectives = self._view.traffic.rt_objectives
        usual_s = 0.5 * objectives.usual_ttft_slo_s(self._now_s)
        if be_cap_s < self._shortest_s and objectives.tightest_ttft_slo_s(self._now_s) < usual_s:
            return max(self._decodes_s, usual_s), self._decodes_s
        return max(self._decodes_s, cap_s), max(self._decodes_s, be_cap_s)

    def heed_decodes(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Tighten to what the decodes need; return their usable slack, and who of them is late."""
        table, latency = self._view.table, self._view.latency
        needed_s = latency.c0 + latency.c1
        slack_s, is_late, (rt_s, be_s) = table_loops.urgency(
            table.counts,
            table.times,
            self._decodes,
            self._now_s,
            self.use,
            needed_s,
            latency.c2,
            self._shortest_s,
            _CATCH_UP,
        )
        self.in_time_s = max(self._decodes_s, min(self.in_time_s, rt_s))
        self.late_s = max(self._decodes_s, min(self.late_s, _SPARE_USE * rt_s))
        be_s = min(_SPARE_USE * be_s, self._lead_s(slack_s))
        self._best_effort_s = max(self._decodes_s, min(self._best_effort_s, be_s))
        return slack_s, is_late

    def _lead_s(self, slack_s: NDArray[np.float64]) -> float:
        """Return how long a step may be after which half of the decodes can still wait for a prompt.

        A prompt that arrives then has nearly the machine to itself: for the longest one, and one in front of it.
        """
        if not len(slack_s):
            return np.inf
        objectives, latency = self._view.traffic.rt_objectives, self._view.latency
        prompt_s = latency.c0 + latency.c5 + latency.prefill_s(objectives.longest_prompt, 0)
        wait_s = min(_PROMPTS_WAITED_FOR * prompt_s, objectives.usual_ttft_slo_s(self._now_s))
        half = len(slack_s) // 2
        return float(np.partition(slack_s, half)[half]) - wait_s

    def heed(self, slack_s: float) -> None:
        """Tighten to a prompt that must be gone on with within `slack_s`."""
        self.in_time_s = min(self.in_time_s, slack_s)
        self.late_s = min(self.late_s, slack_s)

    def best_effort_end_s(self, predicted_s: float) -> float:
        """Return when best-effort work is to end in a step that takes `predicted_s` without it."""
        budget_s = min(self.late_s, self._best_effort_s, self.sustainable_s(predicted_s).by_kv_slots)
        return max(predicted_s, budget_s)

    def sustainable_s(self, predicted_s: float) -> Sustainable:
        """Return the longest mean steps at which real-time finds batch slots and KV slots, by Little's law.

        What a request takes for a number of steps is in use as often at once as requests arrive in their time. More
        KV slots are left free where real-time needs more of them in steps of `predicted_s`, without best-effort.
        Shorter steps then give less back where the estimate errs (docs/decisions/0002-littles-law.md).
        """
        limits, traffic = self._view.limits, self._view.traffic
        block_rounding = UNUSED_OF_BLOCK * limits.block_size
        batch_slots, kv_slots = traffic.rt_arrivals.per_step_s(self._now_s, traffic.rt_output_ratio, block_rounding)
        usable = limits.num_slots - _KV_RESERVE * min(limits.num_slots, kv_slots * predicted_s)
        return Sustainable(limits.max_seqs / max(batch_slots, 1e-9), usable / max(kv_slots, 1e-9))

    def leaves_kv_slots(self) -> bool:
        """Return whether real-time leaves KV slots to best-effort: at its peak of the last seconds, or by Little's law.

        Each real-time decode may soon need a block more.
        """
        view = self._view
        num_reserved = len(self._decodes) * view.limits.block_size
        num_usable = view.limits.num_slots * (1.0 - view.settings.kv_headroom_ratio) - num_reserved
        return view.traffic.rt_slots < num_usable or self.sustainable_s(self._decodes_s).by_kv_slots >= self._decodes_s


def responsiveness_caps_s(view: SchedulerView, now_s: float) -> tuple[float, float]:
    """Return the longest steps, with real-time work only and with best-effort work, for requests that may arrive.

    A real-time request that arrives just after the start must still make its TTFT. The longest prompt shortens steps
    with best-effort work only: prompts in short steps pay for more of them.
    """
    if view.settings.responsiveness_cap_s is not None:
        return view.settings.responsiveness_cap_s, view.settings.responsiveness_cap_s
    objectives, latency = view.traffic.rt_objectives, view.latency
    tightest_s = objectives.tightest_ttft_slo_s(now_s)
    if tightest_s == float("inf"):
        cap_s = max(0.5 * objectives.usual_ttft_slo_s(now_s), min(_IDLE_STEPS * latency.c0, _MAX_IDLE_S))
        return cap_s, cap_s
    left_s = tightest_s - latency.prefill_s(objectives.longest_prompt, 0) - latency.c0 - latency.c5
    cap_s = 0.5 * tightest_s
    return cap_s, min(cap_s, max(0.9 * left_s, 0.1 * tightest_s))
