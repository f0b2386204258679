"""A file of all steps: what each computed and how long it took, to fit step models to (`python -m bench.fit`)."""

from __future__ import annotations

import json
import time
from pathlib import Path

from backend.errors import ConfigError
from backend.plan import StepBatch, StepOutput, StepPlan, StepResult


class StepFile:
    """Writes one JSON line per step: `end_s` (monotonic clock), `duration_s` of the executor, `starts` and `counts`
    (tokens computed before, and now, by sequence), `num_copied` (KV slots to and from the host)."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w")
        except OSError as error:
            raise ConfigError(f"service.step_file: {str(path)!r} cannot be written: {error.strerror}") from error

    def record(self, plan: StepPlan, batch: StepBatch, result: StepResult, output: StepOutput) -> None:
        """Write a step that has ended."""
        del plan, output
        counts = batch.num_new_tokens
        line = {
            "end_s": time.monotonic(),
            "duration_s": result.duration_s,
            "starts": [sequence.num_computed - n for sequence, n in zip(batch.sequences, counts, strict=True)],
            "counts": list(counts),
            "num_copied": len(batch.copies_out) + len(batch.copies_in),
        }
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
