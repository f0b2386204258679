"""Ends a stub whose server is gone and which cannot end by itself.

A server may die while its stub is inside a call to it. The stub then waits without end, with Python's lock held, so
nothing in it can run (seen with server 2.51, `kill -9` during a metric update). The engine therefore watches both.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from backend.wire.protocol import peer_of

logger = logging.getLogger(__name__)

_GRACE_S = 2.0  # a stub notices a dead server within one second, and then cleans up


def watch_stub(connection: socket.socket, server_pid: int) -> None:
    """Watch the stub at the other end of `connection` and its server in a thread, until the stub is gone."""
    stub_pid, _ = peer_of(connection)
    threading.Thread(target=_watch, args=(stub_pid, server_pid), name=f"watch-{stub_pid}", daemon=True).start()


def _watch(stub_pid: int, server_pid: int) -> None:
    with ExitStack() as descriptors:
        try:
            stub, server = os.pidfd_open(stub_pid), os.pidfd_open(server_pid)
        except OSError as error:
            logger.debug("stub %d or server %d is gone, or not in our sight: %s", stub_pid, server_pid, error)
            return
        descriptors.callback(os.close, stub)
        descriptors.callback(os.close, server)
        gone = _wait_for_end([stub, server])
        if stub not in gone and not _wait_for_end([stub], _GRACE_S):
            logger.warning("stub %d outlived its server %d; ending it", stub_pid, server_pid)
            _end(stub_pid, stub)


def _wait_for_end(processes: Sequence[int], timeout_s: float | None = None) -> list[int]:
    """Wait until one of the processes has ended; return the descriptors of those. `select` takes none above 1,023."""
    poll = select.poll()
    for descriptor in processes:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(None if timeout_s is None else 1e3 * timeout_s)]


def _end(stub_pid: int, stub: int) -> None:
    """Kill a stub and remove its shared memory. It may have just ended, or be another user's."""
    regions = _shared_memory_of(stub_pid)
    try:
        signal.pidfd_send_signal(stub, signal.SIGKILL)
    except OSError as error:
        logger.warning("stub %d was not ended: %s", stub_pid, error)
        return
    for region in regions:
        try:
            region.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("shared memory of stub %d stays: %s", stub_pid, error)


def _shared_memory_of(pid: int) -> set[Path]:
    """Return the shared memory files that a process has mapped; a stub shares its own with its server only."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {Path(line.split()[-1]) for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")}
