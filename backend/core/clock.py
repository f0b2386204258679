"""Time as a dependency: the wall clock for serving, a virtual clock for simulation and tests.

All times are seconds on one monotonic axis. Policy and scheduler never hold a clock: they get `now_s` as an argument.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The only source of time of an engine and its executor."""

    def now_s(self) -> float:
        """Return the current time in seconds; never goes back."""
        ...


class MonotonicClock:
    """The machine's monotonic clock, which all processes of one machine share."""

    def now_s(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A clock that moves only when told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Move forward by `duration_s` (>= 0)."""
        assert duration_s >= 0.0, f"a clock cannot go back: advance({duration_s})"
        self._now_s += duration_s

    def advance_to(self, time_s: float) -> None:
        """Move forward to `time_s`; stay where it is if that has passed."""
        self._now_s = max(self._now_s, time_s)
