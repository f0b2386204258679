"""Verdicts on schemas that another process has tried: the latest of each kind."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_KEPT_SCHEMAS = 256  # that were found good, and as many that were refused
MAX_KEPT_CHARS = 1_000_000  # of the good ones: compiled, they took up to 170 bytes for each
REFUSAL_KEPT_S = 60.0  # on a busy machine a check may take too long by chance


@dataclass(frozen=True, slots=True)
class Verdict:
    """A schema that the library has compiled, to be copied for each request; or the reason against it."""

    matcher: Any
    reason: str = ""


class SchemaMemory:
    """Keeps verdicts. A flood of bad schemas drives out no good one. For any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._good: OrderedDict[str, Verdict] = OrderedDict()
        self._num_chars = 0  # of those
        self._refused: OrderedDict[str, tuple[Verdict, float]] = OrderedDict()  # with the time of its end
        self._lock = threading.Lock()

    def find(self, schema: str) -> Verdict | None:
        """Return the verdict on a schema, where one is kept."""
        with self._lock:
            if (good := self._good.get(schema)) is not None:
                self._good.move_to_end(schema)
                return good
            refused, end_s = self._refused.get(schema, (None, 0.0))
            return refused if self._now() < end_s else None

    def keep(self, schema: str, verdict: Verdict) -> None:
        """Store a verdict, and drop the oldest beyond the limits."""
        with self._lock:
            if verdict.reason:
                self._refused.pop(schema, None)
                self._refused[schema] = (verdict, self._now() + REFUSAL_KEPT_S)
            elif schema not in self._good:
                self._good[schema] = verdict
                self._num_chars += len(schema)
            while len(self._good) > MAX_KEPT_SCHEMAS or self._num_chars > MAX_KEPT_CHARS:
                oldest, _ = self._good.popitem(last=False)
                self._num_chars -= len(oldest)
            if len(self._refused) > MAX_KEPT_SCHEMAS:
                self._refused.popitem(last=False)
