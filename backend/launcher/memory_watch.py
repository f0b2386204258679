"""Looks at how much memory a process takes, and how much it may: one that takes all has the kernel end any process.

Triton 2.51 keeps some memory of each gRPC stream that its client resets: one client takes gigabytes in seconds.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from pathlib import Path

from backend.launcher.processes import PROC, read

PERIOD_S = 0.2
SHARE_OF_MACHINE = 0.25  # of its memory, Triton alone: it holds requests and answers, no model
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


async def first_excess(pid: int, most_bytes: int) -> int:
    """Return the memory of process `pid`, bytes, when it is more than `most_bytes`. Shared memory does not count."""
    while (num_bytes := own_bytes(pid)) <= most_bytes:
        await asyncio.sleep(PERIOD_S)
    return num_bytes


def own_bytes(pid: int) -> int:
    """Return the memory that only `pid` has, bytes; 0 when it has ended."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", read(PROC / str(pid) / "status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def default_bytes(limits: Sequence[Path] = _CGROUPS) -> int:
    """Return what a Triton server may take: its share of the machine, or of the container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = [int(words) for path in limits if (words := read(path).strip()).isdecimal()]
    return int(SHARE_OF_MACHINE * min(machine, *container)) if container else int(SHARE_OF_MACHINE * machine)
