"""What the page draws: of the engine's snapshot what tells nobody who asks for what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from client.snapshot import ClassCounts, KVPoolView, Snapshot

_FRESH_S = 0.1  # so long a view holds: many watchers cost the engine what one does


class View(msgspec.Struct, frozen=True):
    """The engine at one moment, without requests and their names."""

    policy: str
    requests_by_class: dict[str, ClassCounts]
    total_step_tokens: dict[str, int]
    total_preemptions: dict[str, int]
    step_s: float | None
    kv: KVPoolView


class Watch:
    """Asks for snapshots on behalf of all pages that are open."""

    def __init__(self, inspect: Callable[[], Awaitable[Snapshot]]) -> None:
        self._inspect = inspect
        self._lock = asyncio.Lock()
        self._asked_s = float("-inf")
        self._view: View | None = None

    async def view(self) -> View:
        """Return the view of now or just now. Raises ApiError."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if self._view is None or now_s - self._asked_s > _FRESH_S:
                self._view = view_of(await self._inspect())
                self._asked_s = now_s
            return self._view


def view_of(snapshot: Snapshot) -> View:
    """Return what may be seen of a snapshot."""
    return View(
        policy=snapshot.policy,
        requests_by_class=snapshot.requests_by_class,
        total_step_tokens=snapshot.total_step_tokens,
        total_preemptions=snapshot.total_preemptions,
        step_s=None if snapshot.step is None else snapshot.step.duration_s,
        kv=snapshot.kv,
    )
