"""What best-effort work costs real-time requests: which miss an objective only beside it, and in which step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backend.core.plan import StepPlan, StepResult
from bench.common.score import RequestRecord, Slos, Window


@dataclass(frozen=True, slots=True)
class StepNote:
    """One step: when it ended and how long it took (seconds), and the new tokens in it by class."""

    end_s: float
    duration_s: float
    num_rt_tokens: int
    num_be_tokens: int


def step_note(end_s: float, plan: StepPlan, result: StepResult) -> StepNote:
    """Note a step that has just ended."""
    num_rt = sum(num for request, num in plan.num_new_tokens.items() if request.is_rt)
    return StepNote(end_s, result.duration_s, num_rt, sum(plan.num_new_tokens.values()) - num_rt)


def lost(
    alone: Sequence[RequestRecord],
    beside: Sequence[RequestRecord],
    notes: Sequence[StepNote],
    slos: Slos,
    window: Window,
) -> list[dict[str, Any]]:
    """Return the real-time requests of the window that keep their objectives alone but not beside best-effort work.

    `alone` and `beside` hold the same requests in order of arrival. `step` is the longest that each one waited for:
    before its first token where that was late, else between its tokens.
    """
    pairs = [pair for pair in zip(alone, beside, strict=True) if pair[0].arrival_s in window]
    return [
        {
            "arrival_s": there.arrival_s,
            "num_prompt": there.num_prompt,
            "num_output": there.num_output,
            "ttft_s": {"alone": here.ttft_s, "beside": there.ttft_s},
            "tpot_s": {"alone": here.tpot_s, "beside": there.tpot_s},
            "step": _longest(there, notes, slos),
        }
        for here, there in pairs
        if here.meets_both(slos) and not there.meets_both(slos)
    ]


def _longest(record: RequestRecord, notes: Sequence[StepNote], slos: Slos) -> dict[str, Any] | None:
    times_s = record.token_times_s
    start_s, end_s = record.arrival_s, times_s[0] if times_s else float("inf")
    if record.meets_ttft(slos):
        start_s, end_s = times_s[0], times_s[-1]
    first = bisect_left(notes, start_s, key=lambda note: note.end_s)
    last = bisect_left(notes, end_s, key=lambda note: note.end_s)
    step = max(notes[first : last + 1], key=lambda note: note.duration_s, default=None)
    return None if step is None else asdict(step)
