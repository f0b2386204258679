"""A file of all steps: what each computed and how long it took, to fit step models to (`python -m tools.fit`)."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import TextIO

from backend.core.errors import ConfigError
from backend.core.ownership import own
from backend.core.plan import StepBatch, StepOutput, StepPlan, StepResult

logger = logging.getLogger(__name__)


class StepFile:
    """Writes one JSON line per step.

    `end_s`: monotonic clock. `duration_s`: of the executor. `starts`, `counts`: tokens computed before and in this
    step, by sequence. `num_copied`: KV slots to and from the host. If the file cannot be written any more (a full
    disk), writing stops and requests go on."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: TextIO | None = open(path, "w", opener=own)  # noqa: SIM115 - `close` does
        except OSError as error:
            raise ConfigError(f"service.step_file: {str(path)!r} cannot be written: {error.strerror}") from error

    def record(self, plan: StepPlan, batch: StepBatch, result: StepResult, output: StepOutput) -> None:
        """Write a step that has ended."""
        del plan, output
        if self._file is None:
            return
        counts = batch.num_new_tokens
        line = {
            "end_s": time.monotonic(),
            "duration_s": result.duration_s,
            "starts": [sequence.num_computed - n for sequence, n in zip(batch.sequences, counts, strict=True)],
            "counts": list(counts),
            "num_copied": len(batch.copies_out) + len(batch.copies_in),
        }
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write the buffered lines and close the file."""
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        assert self._file is not None, "a file that was given up is not written to"
        logger.warning("service.step_file: %s: %s; no further step is written", self._file.name, error.strerror)
        with contextlib.suppress(OSError):  # buffered lines cannot be written either
            self._file.close()
        self._file = None
