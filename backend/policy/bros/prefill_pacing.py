"""How much of the best-effort prompts goes into each step, so that its batch slots stay full."""

from __future__ import annotations

from backend.policy.view import StepRecord

_MEMORY_STEPS = 200  # steps that the mean step time goes back
_GAIN = 5.0  # an empty batch slot in a hundred lets prompts stretch a step by this many parts in a hundred
_OVERLAP = 1.05  # part of the batch slots that real-time may come to need: who is ahead of its schedule can wait


class Pacing:
    """Spreads best-effort prompts over the steps, each as long as the mean one.

    Longer where batch slots are empty, shorter where decodes find none (docs/decisions/0006-spread-prompts.md).
    """

    def __init__(self, max_seqs: int, is_chunked: bool) -> None:
        self._max_seqs = max_seqs
        self._is_chunked = is_chunked
        self._step_s = 0.0  # mean

    def observe(self, step: StepRecord) -> None:
        """Learn from a step that ran."""
        self._step_s += (step.duration_s - self._step_s) * (1.0 / _MEMORY_STEPS if self._step_s else 1.0)

    def prefill_end_s(self, num_free: int, empty_step_s: float, sustainable_s: float) -> float:
        """Return when best-effort prefills are to end.

        num_free: batch slots that no decode could take; below 0, decodes that find none. sustainable_s: the mean step
        time at which arriving real-time fills the batch slots.
        """
        step_s = self._step_s or empty_step_s
        longest_s = float("inf") if step_s < _OVERLAP * sustainable_s else sustainable_s
        stretch = 1.0 - _GAIN * num_free / self._max_seqs
        return min(longest_s, step_s / stretch) if self._is_chunked and stretch > 0.0 else longest_s
