"""Golden traces: digests of all plans of three whole runs. A change of digest is a change of schedule: explain it."""

from __future__ import annotations

import hashlib
import random

import pytest

from backend.core.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.engine.engine import Engine
from tests.backend.factories import Harness, be, rt

GOLDEN = {
    "mixed": "54ea3e2d5505e45d",
    "memory": "962500227a18d071",
    "baseline": "699cab6bcd3c5750",
}
KNOBS: dict[str, dict[str, object]] = {
    "mixed": {"num_blocks": 400, "max_seqs_per_step": 12, "max_seq_len": 400},
    "memory": {"num_blocks": 40, "num_host_slots": 300, "max_seq_len": 400},
    "baseline": {"policy": "priority", "num_blocks": 40, "max_seq_len": 400},
}


def digest(name: str) -> str:
    """Return the digest of a run: each step's tokens by request, its reclaimed and its restored slots."""
    harness, trace = Harness(**KNOBS[name]), hashlib.sha256()

    def record(plan: StepPlan, batch: StepBatch, result: StepResult, output: StepOutput) -> None:
        del batch, result, output
        new = [(request.request_id, num_tokens) for request, num_tokens in plan.num_new_tokens.items()]
        cut = [(reclaim.request.request_id, reclaim.num_kept, reclaim.checkpoint) for reclaim in plan.reclaims]
        back = [(restore.request.request_id, restore.num_tokens) for restore in plan.restores]
        trace.update(repr((new, cut, back)).encode())

    harness.engine = Engine(harness.scheduler, harness.executor, harness.clock, harness._take, record)
    draw = random.Random(name)
    for index in range(30):
        make = draw.choice((rt, be))
        harness.submit(make(draw.randint(1, 300), draw.randint(1, 60), request_id=f"r{index}"))
        harness.step(draw.randint(0, 3))
    harness.run()
    return trace.hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_schedule_is_what_it_was(name: str) -> None:
    assert digest(name) == GOLDEN[name]
