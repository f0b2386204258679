"""Verdicts on schemas that another process has tried: the latest of each kind. And what compiled ones take."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from backend.core.request import PriorityClass

MAX_KEPT_SCHEMAS = 256  # that were found good, and as many that were refused
MAX_KEPT_BYTES = 200_000_000  # of the good ones, compiled: of ten to a thousand
BYTES_PER_TOKEN = 10_000  # of states; 1 to 9 kB were seen
MAX_STATE_BYTES = 125_000_000  # of `max_lexer_states`, some 400 bytes each
REFUSAL_KEPT_S = 60.0  # on a busy machine a check may take too long by chance


@dataclass(slots=True, eq=False, weakref_slot=True)
class Compiled:
    """A schema that the library has compiled, to be copied for each request. A copy holds on to most of it.

    All copies add states to one lexer, some 15 with a token. num_followed: tokens of all copies. is_spent: the lexer is
    full, so that every copy fails.
    """

    matcher: Any
    compiled_bytes: int
    num_followed: int = 0
    is_spent: bool = False

    @property
    def num_bytes(self) -> int:
        """What it takes by now, about."""
        return self.compiled_bytes + min(self.num_followed * BYTES_PER_TOKEN, MAX_STATE_BYTES)


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
        self._refused: OrderedDict[str, tuple[Verdict, float]] = OrderedDict()  # with the time of its end
        self._lock = threading.Lock()

    def find(self, schema: str) -> Verdict | None:
        """Return the verdict on a schema, where one is kept. A spent one is forgotten, to be compiled anew."""
        with self._lock:
            if (good := self._good.get(schema)) is not None and good.compiled is not None:
                if good.compiled.is_spent:
                    del self._good[schema]
                    return None
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
            while len(self._good) > MAX_KEPT_SCHEMAS or _total_bytes(self._good.values()) > MAX_KEPT_BYTES:
                self._good.popitem(last=False)
            if len(self._refused) > MAX_KEPT_SCHEMAS:
                self._refused.popitem(last=False)


def _total_bytes(verdicts: Iterable[Verdict]) -> int:
    return sum(verdict.compiled.num_bytes for verdict in verdicts if verdict.compiled is not None)


class CompiledBytes:
    """The bytes of compiled schemas that are held, in the memory or by requests, by class of who brought each.

    For any thread.
    """

    def __init__(self) -> None:
        self._held: dict[PriorityClass, WeakSet[Compiled]] = {each: WeakSet() for each in PriorityClass}
        self._lock = threading.Lock()

    def add(self, compiled: Compiled, priority_class: PriorityClass) -> None:
        """Count a compiled schema until nobody holds it."""
        with self._lock:
            self._held[priority_class].add(compiled)

    def of(self, priority_class: PriorityClass) -> int:
        """Return the bytes of a class."""
        with self._lock:
            return sum(compiled.num_bytes for compiled in self._held[priority_class])
