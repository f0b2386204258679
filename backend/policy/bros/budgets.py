"""How long a step may take, and which part of that late real-time and best-effort work may use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.policy.bros.decode_bounds import decode_bounds
from backend.policy.bros.kv_forecast import unused_of_block
from backend.policy.packing import MIN_CHUNK, Packing
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

SPARE_USE = 0.9  # part of the decodes' slack that late and best-effort work may use: docs/algorithm.md, "Spare share"
_DECODE_SHARE = 0.5  # part of a real-time step that its decodes take at most where one request asks for less than all
_IDLE_STEPS = 8.0  # empty steps that an idle machine's step may always take: best-effort loses an eighth at most
_GAIN = 5.0  # an empty batch slot in a hundred lets prompts stretch a step by this many parts in a hundred
_KV_RESERVE = 0.6  # part of the KV slots that real-time holds without best-effort: left free, docs/decisions/0002
ROUNDING = float(np.finfo(np.float32).eps)  # the same times are added up in another order


class Sustainable(NamedTuple):
    """Mean step times, in seconds, beyond which arriving real-time requests fill the batch slots or the KV slots."""

    by_batch_slots: float
    by_kv_slots: float


class Budgets:
    """Seconds that this step may take: for real-time in time, for late real-time, for best-effort.

    They tighten as requests with deadlines enter. None is ever below one step of all real-time decodes. Prompts in time
    may also use what the decodes can lend (`prompt_s`). Late and best-effort work may use `SPARE_USE` of the decodes'
    slack only. Deadlines are cumulative, so steps become no shorter by that in the long run. Slack settles at
    1 / SPARE_USE. The reserve lets in a long prompt.

    use: part of a slack that may be planned with. The rest is a margin that grows with the model's own overshoot.
    pace_s: the longest step without a loan, and below the cap that arrivals set.
    """

    def __init__(self, view: SchedulerView, decodes: Rows, now_s: float) -> None:
        self._view = view
        self._now_s = now_s
        self._decodes = decodes
        self.use = min(1.0 - view.settings.budget_margin, 1.0 / (1.0 + view.latency.overshoot_ratio))
        self.decodes_s = view.table.rt_step_s(view.latency, decodes)
        self._decodes_s = self.decodes_s * (1.0 + ROUNDING)
        self._shortest_s = self._decodes_s / _DECODE_SHARE
        self._cap_s = cap_s = responsiveness_cap_s(view, now_s)
        self.in_time_s = float("inf")
        self.pace_s = self.late_s = max(self._shortest_s, cap_s)
        self._best_effort_s = max(self._decodes_s, cap_s)
        self._in_use_per_step_s = _in_use_per_step_s(view, now_s)

    def heed_decodes(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Tighten to what the decodes need; return their usable slack, and who of them is late."""
        table, latency, lengths = self._view.table, self._view.latency, self._view.traffic.rt_lengths
        with_chunk_s = self._decodes_s + latency.c5 + latency.prefill_s(MIN_CHUNK, 0)
        slack_s, is_late, (loan_s, pace_s, be_s, half_s) = decode_bounds(
            table.counts,
            table.times,
            self._decodes,
            self._now_s,
            self.use,
            self._decodes_s,
            latency.c0 + latency.c1,
            latency.c2,
            max(self._shortest_s, with_chunk_s / SPARE_USE),
            lengths.ratios,
            lengths.counts,
            SPARE_USE,
        )
        self.in_time_s = max(self._decodes_s, min(self.in_time_s, loan_s))
        self.pace_s = max(self._decodes_s, min(self.pace_s, pace_s))
        self.late_s = max(self._decodes_s, min(self.late_s, SPARE_USE * pace_s))
        be_s = min(SPARE_USE * be_s, self._lead_s(half_s))
        self._best_effort_s = max(self._decodes_s, min(self._best_effort_s, be_s))
        return slack_s, is_late

    def _lead_s(self, half_s: float) -> float:
        """Return how long a step may be after which half of the decodes, with `half_s` of slack, can still wait for a
        prompt.

        A prompt that arrives has nearly the machine to itself then.
        """
        return half_s - self._view.traffic.rt_objectives.recent(self._now_s).longest_prefill_s

    def prompt_s(self, deadline_s: float) -> float:
        """Return the budget of a prompt in time that is due at `deadline_s`.

        It may borrow, and the cap does not bind it, if it is due before any that may come in the meantime.
        """
        next_due_s = self._now_s + self._view.traffic.rt_objectives.next_ttft_s(self._now_s)
        return self.in_time_s if deadline_s <= next_due_s else min(self.in_time_s, self.pace_s)

    def heed(self, slack_s: float) -> None:
        """Tighten to a prompt that must be gone on with within `slack_s`."""
        self.in_time_s = min(self.in_time_s, slack_s)
        self.late_s = min(self.late_s, slack_s)

    def best_effort_end_s(self, predicted_s: float) -> float:
        """Return when best-effort work is to end in a step that takes `predicted_s` without it."""
        budget_s = min(self.late_s, self._best_effort_s, self.sustainable_s(predicted_s).by_kv_slots)
        return max(predicted_s, budget_s)

    @property
    def step_s(self) -> float:
        """The longest time for this step, as plans tell it."""
        return self.in_time_s if self.in_time_s < float("inf") else self.pace_s

    @property
    def are_longer_later(self) -> bool:
        """Return whether decodes, and no cap, make this step of best-effort short: steps without it gain them time."""
        return self._best_effort_s < self._cap_s

    def prefill_end_s(self, packing: Packing) -> float:
        """Return when best-effort prefills are to end, in a step that has its real-time part.

        They are spread over the steps, each as long as the mean one. Longer where batch slots are empty, shorter where
        decodes find none (docs/decisions/0006-spread-prompts.md). The mean step is not to become longer than that in
        which arriving real-time fills the batch slots.
        """
        view, step_s = self._view, self._view.traffic.step_s
        sustainable_s = self.sustainable_s(packing.predicted_s).by_batch_slots
        longest_s = float("inf") if step_s < sustainable_s else sustainable_s
        num_empty = packing.seqs_left - len(packing.groups.be_decodes)  # that no decode could take
        stretch = 1.0 - _GAIN * num_empty / view.limits.max_seqs
        return min(longest_s, step_s / stretch) if view.settings.chunked_prefill and stretch > 0.0 else longest_s

    def sustainable_s(self, predicted_s: float) -> Sustainable:
        """Return the longest mean steps at which real-time finds batch slots and KV slots, by Little's law.

        What a request takes for a number of steps is in use as often at once as requests arrive in their time. More
        KV slots are left free where real-time needs more of them in steps of `predicted_s`, without best-effort.
        Shorter steps then give less back where the estimate errs (docs/decisions/0002-littles-law.md).
        """
        limits, (batch_slots, kv_slots) = self._view.limits, self._in_use_per_step_s
        usable = limits.num_slots - _KV_RESERVE * min(limits.num_slots, kv_slots * predicted_s)
        return Sustainable(limits.max_seqs / max(batch_slots, 1e-9), usable / max(kv_slots, 1e-9))

    def leaves_kv_slots(self) -> bool:
        """Return whether real-time leaves KV slots to best-effort: now, or by Little's law."""
        view = self._view
        num_usable = view.limits.num_slots * (1.0 - view.settings.kv_headroom_ratio)
        is_free = view.table.num_rt_known() < num_usable
        return is_free or self.sustainable_s(self._decodes_s).by_kv_slots >= self._decodes_s


def _in_use_per_step_s(view: SchedulerView, now_s: float) -> tuple[float, float]:
    """Return the batch slots and the KV slots that arriving real-time will use at once, a second of step time."""
    batch_slots, kv_slots = view.traffic.rt_arrivals.per_step_s(now_s)
    return batch_slots, kv_slots + batch_slots * unused_of_block(view)


def responsiveness_cap_s(view: SchedulerView, now_s: float) -> float:
    """Return the longest time to plan for a step. A real-time request that arrives just after its start must make its
    TTFT, although the step may take longer than the model says."""
    wait_s = view.settings.responsiveness_cap_s
    if wait_s is None:
        wait_s = view.traffic.rt_objectives.wait_s(now_s, _IDLE_STEPS * view.latency.c0)
    return wait_s / (1.0 + view.latency.overshoot_ratio)
