"""The private directory of one launch, which nothing of that launch outlives.

    <tmp>/bros-<uid>/run/<id>/      locked by the launcher for as long as it lives
        engine.json  engine.sock  backends/  models/  logs/

A reaper process waits beside the launcher and sweeps when it ends. A directory whose lock is free belongs to a launch
that ended together with its reaper: the next launch sweeps it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from backend.errors import ConfigError
from backend.serving import reaper

REAPER_TIMEOUT_S = 15.0


@contextmanager
def run_directory() -> Iterator[Path]:
    """Make a launch's directory; on leaving, end every process of the launch and remove all it left behind."""
    base = _base_directory()
    with (base / "lock").open("w") as launches, _reserved(base, launches) as path, _reaped(path):
        yield path


@contextmanager
def _reserved(base: Path, launches: IO[str]) -> Iterator[Path]:
    """Sweep dead launches, then make a directory and keep it locked. One launch at a time does this."""
    fcntl.flock(launches, fcntl.LOCK_EX)
    _sweep_dead_launches(base)
    path = base / secrets.token_hex(4)
    path.mkdir(mode=0o700)
    with (path / "lock").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        fcntl.flock(launches, fcntl.LOCK_UN)
        yield path


@contextmanager
def _reaped(path: Path) -> Iterator[None]:
    """Let a reaper wait for this process to end, or for the end of the `with` block."""
    command = [sys.executable, "-I", "-S", reaper.__file__, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(REAPER_TIMEOUT_S)


def _sweep_dead_launches(base: Path) -> None:
    for path in base.iterdir():
        if path.is_dir() and not _is_alive(path):
            reaper.sweep(path)


def _is_alive(path: Path) -> bool:
    with (path / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _base_directory() -> Path:
    """Return this user's directory of launches. Raises ConfigError when somebody else made it."""
    parent = Path(tempfile.gettempdir()) / f"bros-{os.getuid()}"
    base = parent / "run"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if parent.lstat().st_uid != os.getuid():
        raise ConfigError(f"{parent} belongs to another user: remove it, or set TMPDIR")
    return base
