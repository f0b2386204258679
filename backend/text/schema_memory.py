"""Verdicts on schemas that another process has tried: the latest of each kind."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_KEPT_SCHEMAS = 256  # that were found good, and as many that were refused
REFUSAL_KEPT_S = 60.0  # on a busy machine a check may take too long by chance


@dataclass(frozen=True, slots=True)
class Verdict:
    """The library's form of a schema, or the reason against it."""

    grammar: str
    reason: str = ""


class SchemaMemory:
    """Keeps verdicts. A flood of bad schemas drives out no good one. For any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._good: OrderedDict[str, Verdict] = OrderedDict()
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
        """Store a verdict, and drop the oldest beyond the limit."""
        with self._lock:
            if verdict.reason:
                self._refused.pop(schema, None)
                self._refused[schema] = (verdict, self._now() + REFUSAL_KEPT_S)
            else:
                self._good[schema] = verdict
            for kept in (self._good, self._refused):
                if len(kept) > MAX_KEPT_SCHEMAS:
                    kept.popitem(last=False)
