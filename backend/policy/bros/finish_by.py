"""Finish-by deadlines of best-effort requests: which must be served now, so that all that can be met will be.

A job has a serial part and a parallel part. The serial part, its prompt, keeps the machine from the others. The
parallel part, its output, goes on beside them. So the serial part is due at `deadline - parallel`, and serial parts in
order of these due times are the earliest-deadline-first schedule of one machine. While all of them would still end in
time if begun a little later, nothing is urgent.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

_URGENCY = 1.5  # factor on predicted work, so that it begins a little before the latest start


class Job(NamedTuple):
    """The rest of a request with a finish-by deadline, in seconds."""

    deadline_s: float
    serial_s: float
    parallel_s: float

    @property
    def due_s(self) -> float:
        """When the serial part must have ended."""
        return self.deadline_s - self.parallel_s


def urgent(jobs: Sequence[Job], now_s: float, more_s: float = 0.0, stretch: float = 1.0) -> list[int]:
    """Return the indices of the jobs to serve now, in order: all up to the last whose latest start has come.

    Jobs that cannot end in time are left out: they would only make others late. more_s: serial parts of jobs that are
    due after all of these and were not looked at; they count as due with the last. stretch: how many times longer
    serial parts take beside other work.
    """
    order = feasible(jobs, now_s)
    end_s, num_urgent = now_s, 0
    for position, index in enumerate(order, start=1):
        job = jobs[index]
        end_s += _URGENCY * stretch * job.serial_s
        if end_s + (_URGENCY - 1.0) * job.parallel_s >= job.due_s:
            num_urgent = position
    if more_s and order:
        last = jobs[order[-1]]
        end_s += _URGENCY * stretch * more_s + (_URGENCY - 1.0) * last.parallel_s
        num_urgent = len(order) if end_s >= last.due_s else num_urgent
    return order[:num_urgent]


def feasible(jobs: Sequence[Job], now_s: float) -> list[int]:
    """Return the indices of the most jobs that can all end in time, by due time. Whenever one does not fit, the longest
    so far goes (Moore, Management Science 15(1), 1968). Equals keep their order."""
    order = sorted(range(len(jobs)), key=lambda index: jobs[index].due_s)
    by_length: list[tuple[float, int]] = []  # a heap, the longest first
    dropped: set[int] = set()
    end_s = now_s
    for index in order:
        heapq.heappush(by_length, (-jobs[index].serial_s, -index))
        end_s += jobs[index].serial_s
        if end_s > jobs[index].due_s:
            length_s, longest = heapq.heappop(by_length)
            end_s += length_s
            dropped.add(-longest)
    return [index for index in order if index not in dropped]
