"""Reads the processes of this machine from /proc: who descends from whom, who listens on a port, who is connected."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

PROC = Path("/proc")
_ESTABLISHED, _LISTEN = "01", "0A"  # linux/tcp_states.h
_LOCAL_ADDRESS, _STATE, _INODE = 1, 3, 9  # columns of /proc/net/tcp


def read(path: Path) -> str:
    """Return a file of /proc; nothing when its process has ended meanwhile."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def parent_of(directory: Path) -> int | None:
    """Return the process id after the command's name, which is in brackets and may hold any of them, and the state."""
    fields = read(directory / "stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def listens(pid: int, ports: Collection[int]) -> bool:
    """Return whether `pid` and its descendants hold a listening socket of each of `ports`.

    An answer from a port does not tell: it may be that of another launch, which took the port first.
    """
    sockets = _sockets(pid, ports, _LISTEN)
    missing = set(ports)
    if missing - set(sockets.values()):
        return False  # nobody listens there yet
    for owner in _family(pid):
        held = _sockets_of(owner)
        missing -= {port for inode, port in sockets.items() if inode in held}
        if not missing:
            return True
    return False


def has_clients(pid: int, ports: Collection[int]) -> bool:
    """Return whether anybody is connected to one of `ports`, on which `pid` listens or has listened."""
    return bool(_sockets(pid, ports, _ESTABLISHED))


def _sockets(pid: int, ports: Collection[int], state: str) -> dict[str, int]:
    """Return the sockets of `ports` in a state, of whatever process in the network of `pid`, as `{inode: port}`."""
    tables = PROC / str(pid) / "net"
    rows = (line.split() for line in (read(tables / "tcp") + read(tables / "tcp6")).splitlines())
    sockets = {row[_INODE]: row[_LOCAL_ADDRESS].rpartition(":")[2] for row in rows if row[_STATE] == state}
    return {inode: int(port, 16) for inode, port in sockets.items() if int(port, 16) in ports}


def _sockets_of(pid: int) -> set[str]:
    """Return the inodes of a process's sockets; none when it has ended meanwhile, or is another user's."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(PROC / str(pid) / "fd") as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(os.readlink(entry))
    return {link[len("socket:[") : -1] for link in found if link.startswith("socket:[")}


def _family(pid: int) -> Iterator[int]:
    """Yield a process, its children, their children, and so on."""
    yield pid
    parents = {int(directory.name): parent_of(directory) for directory in PROC.glob("[0-9]*")}
    generation = {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        yield from sorted(generation)
