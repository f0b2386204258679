"""Finish-by deadlines of best-effort requests: which must be served now, so that all that can be met will be.

A job has a serial part and a parallel part. The serial part, its prompt, keeps the machine from the others. The
parallel part, its output, goes on beside them. So the serial part is due at `deadline - parallel`, and serial parts in
order of these due times are the earliest-deadline-first schedule of one machine. While all of them would still end in
time if begun a little later, nothing is urgent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_URGENCY = 2.0  # factor on predicted work, so that it begins a little before the latest start


class Job(NamedTuple):
    """The rest of a request with a finish-by deadline, in seconds."""

    deadline_s: float
    serial_s: float
    parallel_s: float

    @property
    def due_s(self) -> float:
        """When the serial part must have ended."""
        return self.deadline_s - self.parallel_s


def urgent(jobs: Sequence[Job], now_s: float) -> list[int]:
    """Return the indices of the jobs to serve now, by due time: all up to the last whose latest start has come.

    A job that cannot end in time behind those before it is left out: it would only make others late.
    """
    end_s, num_urgent = now_s, 0
    feasible: list[int] = []
    for index in sorted(range(len(jobs)), key=lambda index: jobs[index].due_s):
        job = jobs[index]
        if end_s + job.serial_s <= job.due_s:
            feasible.append(index)
            end_s += job.serial_s
            cautious_end_s = now_s + _URGENCY * (end_s - now_s) + (_URGENCY - 1.0) * job.parallel_s
            num_urgent = len(feasible) if cautious_end_s >= job.due_s else num_urgent
    return feasible[:num_urgent]
