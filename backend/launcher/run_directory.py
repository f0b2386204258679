"""The private directory of one launch, which nothing of that launch outlives.

    <tmp>/bros-<uid>/run/<id>/      locked by the launcher for as long as it lives
        engine.json  engine.sock  backends/  models/  logs/

A reaper process waits beside the launcher and sweeps when it ends. A directory whose lock is free belongs to a launch
that ended together with its reaper: the next launch sweeps it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from backend.core.errors import ConfigError
from backend.launcher import reaper

REAPER_TIMEOUT_S = 15.0
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@%+-]*")
_FALLBACKS = ("/tmp", "/var/tmp")
_MAX_PATH_CHARS = 66  # a Unix socket's path has at most 107, and ours adds up to 41


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
    """Return this user's directory of launches. Raises ConfigError if none can be made."""
    parent = _temporary_directory() / f"bros-{os.getuid()}"
    base = parent / "run"
    for path in (parent, base):
        _make_own(path)
    return base


def _make_own(path: Path) -> None:
    """Make a directory of this user; write nothing into what another user, or a link, put there before."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if found.st_uid != os.getuid():
            raise ConfigError(f"{path} belongs to another user: remove it, or set TMPDIR") from None
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"{path} is no directory: remove it, or set TMPDIR") from None
        path.chmod(0o700)


def _temporary_directory() -> Path:
    """Return $TMPDIR, or another temporary directory where that one's name breaks Triton. Raises ConfigError.

    Triton (2.51) writes names of files into a shell command without quotes, and reads them back as ASCII.
    """
    wanted = os.environ.get("TMPDIR")
    for name in filter(None, (tempfile.tempdir, wanted, *_FALLBACKS)):
        if _PLAIN_PATH.fullmatch(name) and len(name) <= _MAX_PATH_CHARS and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    raise ConfigError(
        f"no directory for temporary files: TMPDIR is {wanted!r}; one is needed that can be written, of at most "
        f"{_MAX_PATH_CHARS} letters, digits, or any of _./@%+-"
    )
