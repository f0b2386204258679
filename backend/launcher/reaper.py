"""Ends whatever a launch left behind: its processes, its shared memory, its directory.

    python reaper.py RUN_DIRECTORY      waits until its standard input closes, then sweeps

The launcher holds the other end of that pipe and never writes. However the launcher ends, `kill -9` included, the
kernel closes the pipe. Processes are found by an environment variable that every child of a launch inherits, so stubs
that lost their server are found too. Standard library only: it starts in a few milliseconds, as a plain file.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
from pathlib import Path

RUN_VARIABLE = "BROS_RUN_DIRECTORY"  # in the environment of every process of a launch
SHARED_MEMORY = Path("/dev/shm")
KILL_TIMEOUT_MS = 5_000


def main() -> None:
    """Wait for the launcher's end, deaf to the signals that a terminal sends to its whole group, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run_directory = Path(sys.argv[1])
    sys.stdin.buffer.read()
    sweep(run_directory)


def sweep(run_directory: Path) -> None:
    """Kill every process of that launch, then remove its shared memory and its directory."""
    while processes := marked_processes(run_directory):
        for pid in processes:
            kill_and_wait(pid)
    sweep_shared_memory(run_directory)
    shutil.rmtree(run_directory, ignore_errors=True)


def sweep_shared_memory(run_directory: Path) -> None:
    """Remove the shared memory of that launch; who still maps a region keeps it until its end."""
    for region in SHARED_MEMORY.glob(f"{shared_memory_prefix(run_directory)}*"):
        region.unlink(missing_ok=True)


def shared_memory_prefix(run_directory: Path) -> str:
    """Return how the names of all shared memory regions of that launch begin."""
    return f"bros_{run_directory.name}_"


def marked_processes(run_directory: Path) -> list[int]:
    """Return the processes of this user whose environment names that launch."""
    mark = f"{RUN_VARIABLE}={run_directory}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def kill_and_wait(pid: int) -> None:
    """Kill a process and wait until it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            poll = select.poll()
            poll.register(process, select.POLLIN)
            poll.poll(KILL_TIMEOUT_MS)
        finally:
            os.close(process)


if __name__ == "__main__":
    main()
