"""A process of a launch: started, watched and stopped from the supervisor's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from backend.core.ownership import own
from backend.launcher.launch import Command
from backend.launcher.processes import PROC, has_clients, listens, parent_of, read
from backend.launcher.triton_install import STUB

LOG_TAIL_LINES = 15


class Child:
    """Runs `command`, each time in a session of its own, so that a Ctrl-C in the terminal reaches the launcher only."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.log_start = 0  # of this life, in bytes
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.command.name} was never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def has_its_ports(self) -> bool:
        """Whether it runs and listens on all its ports, so that an answer from there is its own."""
        return self.is_running and listens(self.pid, self.command.ports.values())

    def has_clients(self, *names: str) -> bool:
        """Return whether anybody is connected to its ports of these names."""
        return self.is_running and has_clients(self.pid, [self.command.ports[name] for name in names])

    async def start(self) -> None:
        """Start the process; its output is appended to the log."""
        with open(self.command.log, "ab", opener=own) as log:
            self.log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self.command.arguments,
                env=self.command.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def exited(self) -> int:
        """Wait for the end of the process; return its exit code (negative: the signal that ended it)."""
        assert self._process is not None, f"{self.command.name} was never started"
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> bool:
        """Ask the process to end, and wait up to `timeout_s`. Return whether it did."""
        if not self.is_running:
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        return await self.ended_within(timeout_s)

    async def ended_within(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for the end of the process. Return whether it came."""
        try:
            await asyncio.wait_for(self.exited(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def kill(self) -> None:
        """End the process at once, if it runs; the reaper ends its own children."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            await self.exited()

    def log_tail(self) -> str:
        """Return the last lines it wrote."""
        lines = self.command.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


def stubs_of(server_pid: int) -> dict[int, str]:
    """Return the Python stubs of a server, `{pid: model name}`, read from /proc.

    Not from its lists of children, one for each thread: a thread that ends hands its own on between two reads.
    """
    found = {}
    for directory in PROC.glob("[0-9]*"):
        arguments = read(directory / "cmdline").split("\0")
        if STUB in arguments[0] and parent_of(directory) == server_pid:
            found[int(directory.name)] = Path(arguments[1]).parent.parent.name  # …/<model>/<version>/model.py
    return found


async def first_exit(pids: set[int]) -> int:
    """Wait until one of the processes `pids`, children or not, has ended; return which."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    watched: list[int] = []

    def report(pid: int) -> None:
        if not ended.done():
            ended.set_result(pid)

    try:
        for pid in sorted(pids):
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                return pid
            watched.append(descriptor)
            loop.add_reader(descriptor, report, pid)
        return await ended
    finally:
        for descriptor in watched:
            loop.remove_reader(descriptor)
            os.close(descriptor)
