"""When to send a refused request again: only if the server was overloaded, a bounded number of times."""

from __future__ import annotations

from dataclasses import dataclass

from client.errors import OverloadedError


@dataclass(frozen=True, slots=True)
class Retry:
    """Bounds of retrying. `max_attempts` 1 means never; a wait is the server's advice, doubled each time, spread, and
    at most `max_wait_s` seconds."""

    max_attempts: int = 1
    max_wait_s: float = 10.0

    def wait_s(self, error: OverloadedError, attempt: int, spread: float) -> float | None:
        """Return how long to wait after `attempt` (1, 2, …) was refused; None to give up.

        `spread` in [0, 1) shortens the wait by up to a third: clients refused together do not come back together.
        """
        if attempt >= self.max_attempts:
            return None
        advised_s: float = error.retry_after_s * 2 ** min(attempt - 1, 16)
        return min(self.max_wait_s, 1.5 * advised_s) * (1.0 - spread / 3.0)


NEVER = Retry()
