"""Sees that Triton waits for the end of a stub that lives.

While a model loads, Triton 2.51 looks whether its stub is well. On a machine under load a stub may be too slow to show
it. Triton then gives it up, and waits for its end, which it does not bring about: it neither becomes ready nor ends.
The thread that loads the model stands in wait4() then (StubLauncher::Launch, WaitForStubProcess).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from backend.launcher.child import stubs_of
from backend.launcher.processes import PROC, read

PERIOD_S = 1.0  # from one look to the next
NUM_LOOKS = 10  # in a row that find it waiting for the same stub: one that ends is gone in a few
_WAIT4 = "61"  # the number of the system call on x86-64


async def first_lost_stub(server_pid: int, is_over: Callable[[], bool]) -> str | None:
    """Return the model of the first stub that the server waits for although it lives; None once `is_over()`."""
    num_looks: dict[int, int] = {}
    while not is_over():
        stubs = stubs_of(server_pid)
        waited_for = awaited(server_pid, stubs)
        num_looks = {pid: num_looks.get(pid, 0) + 1 for pid in waited_for}
        for pid, num in num_looks.items():
            if num >= NUM_LOOKS:
                return stubs[pid]
        await asyncio.sleep(PERIOD_S)
    return None


def awaited(pid: int, children: Collection[int]) -> set[int]:
    """Return those of `children` whose end a thread of process `pid` waits for; none where the kernel does not say."""
    calls = [read(path).split() for path in (PROC / str(pid) / "task").glob("*/syscall")]
    return {int(call[1], 16) for call in calls if call[:1] == [_WAIT4]} & set(children)
