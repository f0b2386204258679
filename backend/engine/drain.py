"""How fast a queue drains: what an advice to come back later rests on."""

from __future__ import annotations

from dataclasses import dataclass

from backend.policy.state.arrival_rate import kept, rate_of_one

_MEMORY_S = 5.0  # seconds that the rate goes back: older ones say little about now
_MIN_ELAPSED_S = 1.0  # seconds: the first requests say little about a rate


@dataclass(slots=True, eq=False)
class Drain:
    """How many requests of one class leave their queue per second, averaged over the last _MEMORY_S or so."""

    _first_s: float = float("inf")
    _last_s: float = 0.0
    _num: float = 0.0  # decayed

    def note(self, now_s: float) -> None:
        """Count a request that begins."""
        self._first_s = min(self._first_s, now_s)
        self._num = kept(self._last_s, now_s, _MEMORY_S) * self._num + 1.0
        self._last_s = max(self._last_s, now_s)

    def per_s(self, now_s: float) -> float:
        """Return the rate; 0 where none ever began."""
        elapsed_s = max(now_s - self._first_s, _MIN_ELAPSED_S)
        return self._num * rate_of_one(elapsed_s, self._last_s, now_s, _MEMORY_S)
