"""The step file: a disk that is full costs its lines, not the engine."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from backend.core.clock import VirtualClock
from backend.core.plan import StepOutput
from backend.engine.engine import Engine, Submit
from backend.engine.scheduler import make_scheduler
from backend.engine.step_file import StepFile
from backend.executors.sim import SimExecutor, SimSettings
from backend.policy.settings import SchedulerSettings
from tests.backend.factories import make_request


def test_a_full_disk_ends_the_file_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    clock, ended = VirtualClock(), []
    executor = SimExecutor(SimSettings(), clock)
    scheduler = make_scheduler(SchedulerSettings(), executor.capacity(), frozenset())

    def emit(output: StepOutput) -> None:
        ended.extend(output.finished)

    steps = StepFile(Path("/dev/full"))
    engine = Engine(scheduler, executor, clock, emit, steps.record)
    engine.post(Submit(make_request(request_id="r", num_prompt=5, max_tokens=500)))  # more lines than a buffer holds
    with caplog.at_level(logging.WARNING):
        while engine.step():
            pass
        steps.close()
    assert [request.request_id for request in ended] == ["r"]
    assert [record.message for record in caplog.records] == [
        "service.step_file: /dev/full: No space left on device; no further step is written"
    ]


def test_a_file_that_cannot_be_finished_is_closed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    steps = StepFile(Path("/dev/full"))
    assert steps._file is not None
    steps._file.write("x")
    steps.close()
    steps.close()
    assert len(caplog.records) == 1
