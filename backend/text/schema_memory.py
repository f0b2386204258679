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
from backend.text.schema_process import bytes_in_use

MAX_KEPT_SCHEMAS = 256  # that were found good, and as many that were refused
MAX_KEPT_BYTES = 200_000_000  # of the good ones, compiled: of ten to a thousand
MAX_GROWN_BYTES = 1_000_000_000  # of this process, beyond the least that was seen
LOOK_S = 1.0  # from one look at that to the next
NUM_FORGOTTEN = 4  # at a look: to free one may take 20 ms
NUM_LOOKS_IN_VAIN = 10  # with nothing left to forget, after which what this process takes counts as usual
UNSHARED_S = 60.0  # from the last time that one of its lexers was full
REFUSAL_KEPT_S = 60.0  # on a busy machine a check may take too long by chance


@dataclass(slots=True, eq=False, weakref_slot=True)
class Compiled:
    """A schema that the library has compiled, to be copied for each request. A copy holds on to most of it.

    All copies add states of some 600 bytes each to one lexer. Most schemas have few. num_bytes: at first. grown_bytes:
    for the states that are to come. num_followed: tokens of all copies.
    """

    matcher: Any
    num_bytes: int
    grown_bytes: int = 0
    num_followed: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A compiled schema, or the reason against it."""

    compiled: Compiled | None
    reason: str = ""


class SchemaMemory:
    """Keeps verdicts. A flood of bad schemas drives out no good one. For any thread.

    A schema that has filled its lexer is not shared for a while: each request gets a compiled one of its own.

    The library does not tell how many states a schema has. So where this process has grown much, those go that are kept
    then, first the ones of which most tokens were followed. Where that was in vain for some time, the bytes count as
    usual.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, in_use: Callable[[], int] = bytes_in_use) -> None:
        """in_use: the bytes of this process."""
        self.bytes_in_use = in_use
        self._now = now
        self._num_in_vain = 0
        self._usual_bytes = float("inf")
        self._next_look_s = float("-inf")
        self._is_short = False
        self._to_forget: list[str] = []  # since this process was found to have grown: the first to go at the end
        self._good: OrderedDict[str, Verdict] = OrderedDict()
        self._unshared: OrderedDict[str, tuple[int, float]] = OrderedDict()  # bytes at first; the time of its end
        self._refused: OrderedDict[str, tuple[Verdict, float]] = OrderedDict()  # with the time of its end
        self._lock = threading.Lock()

    def is_short(self) -> bool:
        """Return whether this process has grown much at the last look."""
        if self._now() >= self._next_look_s:
            with self._lock:
                self._look_at_memory()
        return self._is_short

    def find(self, schema: str) -> Verdict | None:
        """Return the verdict on a schema, where one is kept."""
        with self._lock:
            self._look_at_memory()
            if (good := self._good.get(schema)) is not None:
                self._good.move_to_end(schema)
                return good
            refused, end_s = self._refused.get(schema, (None, 0.0))
            return refused if self._now() < end_s else None

    def keep(self, schema: str, verdict: Verdict) -> None:
        """Store a verdict, and drop the oldest beyond the limits."""
        with self._lock:
            if verdict.compiled is None:
                self._refuse(schema, verdict)
            elif self._own_bytes(schema) is not None:
                self._unshared.move_to_end(schema)
            elif schema not in self._good:
                self._good[schema] = verdict
            while len(self._good) > MAX_KEPT_SCHEMAS or _total_bytes(self._good.values()) > MAX_KEPT_BYTES:
                self._good.popitem(last=False)

    def share_no_more(self, schema: str, num_bytes: int) -> None:
        """Keep no compiled one of this schema for a while. Its lexer is full, so that every copy fails.

        num_bytes: of a compiled one, at first.
        """
        with self._lock:
            self._good.pop(schema, None)
            self._unshared[schema] = (num_bytes, self._now() + UNSHARED_S)
            self._unshared.move_to_end(schema)
            if len(self._unshared) > MAX_KEPT_SCHEMAS:
                self._unshared.popitem(last=False)

    def own_bytes(self, schema: str) -> int | None:
        """Return the bytes of a compiled one at first where each request gets its own; None where they share one."""
        with self._lock:
            return self._own_bytes(schema)

    def _own_bytes(self, schema: str) -> int | None:
        num_bytes, end_s = self._unshared.get(schema, (None, 0.0))
        return num_bytes if self._now() < end_s else None

    def _refuse(self, schema: str, verdict: Verdict) -> None:
        self._refused.pop(schema, None)
        self._refused[schema] = (verdict, self._now() + REFUSAL_KEPT_S)
        if len(self._refused) > MAX_KEPT_SCHEMAS:
            self._refused.popitem(last=False)

    def _look_at_memory(self) -> None:
        if self._now() < self._next_look_s:
            return
        self._next_look_s = self._now() + LOOK_S
        in_use = self.bytes_in_use()
        self._usual_bytes = min(self._usual_bytes, in_use)
        self._is_short = in_use - self._usual_bytes > MAX_GROWN_BYTES
        if not self._is_short:
            self._to_forget.clear()
            self._num_in_vain = 0
            return
        if not self._to_forget and not self._num_in_vain:
            self._to_forget = sorted(self._good, key=self._num_followed)
        for _ in range(min(NUM_FORGOTTEN, len(self._to_forget))):
            self._good.pop(self._to_forget.pop(), None)
        self._num_in_vain += not self._to_forget
        if self._num_in_vain >= NUM_LOOKS_IN_VAIN:
            self._usual_bytes, self._num_in_vain = float("inf"), 0

    def _num_followed(self, schema: str) -> int:
        compiled = self._good[schema].compiled
        return 0 if compiled is None else compiled.num_followed


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
            return sum(compiled.num_bytes + compiled.grown_bytes for compiled in self._held[priority_class])
