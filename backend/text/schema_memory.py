"""Verdicts on schemas that another process has tried: the latest of each kind. And what compiled ones take."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backend.core.request import PriorityClass

MAX_KEPT_SCHEMAS = 256  # that were found good, and as many that were refused
MAX_KEPT_BYTES = 200_000_000  # of the good ones, compiled: of ten to a thousand
REFUSAL_KEPT_S = 60.0  # on a busy machine a check may take too long by chance


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Compiled:
    """A schema that the library has compiled, to be copied for each request. A copy holds on to most of it."""

    matcher: Any
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A compiled schema, or the reason against it."""

    compiled: Compiled | None
    reason: str = ""


class SchemaMemory:
    """Keeps verdicts. A flood of bad schemas drives out no good one. For any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._good: OrderedDict[str, Verdict] = OrderedDict()
        self._num_bytes = 0  # of those
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
            if verdict.compiled is None:
                self._refused.pop(schema, None)
                self._refused[schema] = (verdict, self._now() + REFUSAL_KEPT_S)
            elif schema not in self._good:
                self._good[schema] = verdict
                self._num_bytes += verdict.compiled.num_bytes
            while len(self._good) > MAX_KEPT_SCHEMAS or self._num_bytes > MAX_KEPT_BYTES:
                _, oldest = self._good.popitem(last=False)
                assert oldest.compiled is not None, "a refusal among the good"
                self._num_bytes -= oldest.compiled.num_bytes
            if len(self._refused) > MAX_KEPT_SCHEMAS:
                self._refused.popitem(last=False)


class CompiledBytes:
    """The bytes of compiled schemas that are held, here or by requests, by class of who brought each.

    For any thread.
    """

    def __init__(self) -> None:
        self._num_bytes: Counter[PriorityClass] = Counter()
        self._gone: deque[tuple[PriorityClass, int]] = deque()  # a finalizer may run anywhere, and takes no lock
        self._lock = threading.Lock()

    def add(self, compiled: Compiled, priority_class: PriorityClass) -> None:
        """Count a compiled schema until nobody holds it."""
        with self._lock:
            self._num_bytes[priority_class] += compiled.num_bytes
        weakref.finalize(compiled, self._gone.append, (priority_class, compiled.num_bytes)).atexit = False

    def of(self, priority_class: PriorityClass) -> int:
        """Return the bytes of a class."""
        with self._lock:
            while self._gone:
                gone_class, num_bytes = self._gone.popleft()
                self._num_bytes[gone_class] -= num_bytes
            return self._num_bytes[priority_class]
