"""The snapshot from which metrics are made."""

from __future__ import annotations

from backend.core.request import PriorityClass
from tests.backend.factories import BE, RT, be, rt
from tests.backend.policy.driving import make, step


def test_stats_count_requests_by_class_and_state() -> None:
    scheduler = make(max_seqs_per_step=1)
    for request in (rt(), be(), be()):
        scheduler.add(request, 0.0)
    step(scheduler, 0.0)
    counts = scheduler.stats().requests
    assert (counts[RT].num_running, counts[RT].num_waiting) == (1, 0)
    assert (counts[BE].num_running, counts[BE].num_waiting) == (0, 2)
    assert set(counts) == set(PriorityClass)
