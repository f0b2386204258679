"""Nothing of a launch outlives it: not after its end, not after `kill -9`, not after a crash of its reaper too."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from backend.core.errors import ConfigError
from backend.launcher import reaper
from backend.launcher.run_directory import run_directory

LAUNCHER = """
import os, subprocess, sys, time
from pathlib import Path
from backend.launcher.reaper import RUN_VARIABLE, shared_memory_prefix
from backend.launcher.run_directory import run_directory

with run_directory() as path:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(command, env=os.environ | {RUN_VARIABLE: str(path)}, start_new_session=True)
    region = Path("/dev/shm") / f"{shared_memory_prefix(path)}region"
    region.write_bytes(b"x")
    print(path, child.pid, region, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short path: a launch's sockets lie below it, and a longer one is passed over."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def temporary_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def start_launcher() -> tuple[subprocess.Popen[str], Path, int, Path]:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    path, pid, region = launcher.stdout.readline().split()
    return launcher, Path(path), int(pid), Path(region)


def reapers_of(path: Path) -> list[int]:
    arguments = {pid: Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()}
    return [int(pid) for pid, file in arguments.items() if file.exists() and str(path).encode() in file.read_bytes()]


def is_running(pid: int) -> bool:
    """A zombie that nobody collects has ended."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for_end(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        assert poll.poll(60_000), f"process {pid} is still running"
    finally:
        os.close(process)


def close(launcher: subprocess.Popen[str]) -> None:
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    launcher.stdin.close()
    launcher.stdout.close()
    launcher.wait()


def test_an_ordinary_end_leaves_nothing() -> None:
    launcher, path, pid, region = start_launcher()
    close(launcher)
    assert not path.exists()
    assert not region.exists()
    assert not is_running(pid)


def test_kill_9_of_the_launcher_leaves_nothing() -> None:
    launcher, path, pid, region = start_launcher()
    (waiting,) = reapers_of(path)
    launcher.kill()
    wait_for_end(waiting)
    close(launcher)
    assert not path.exists()
    assert not region.exists()
    assert not is_running(pid)


def test_the_next_launch_sweeps_what_a_dead_reaper_left() -> None:
    launcher, path, pid, region = start_launcher()
    for waiting in reapers_of(path):
        os.kill(waiting, signal.SIGKILL)
        wait_for_end(waiting)
    launcher.kill()
    close(launcher)
    assert region.exists()
    with run_directory():
        assert not path.exists()
        assert not region.exists()
    wait_for_end(pid)


def test_a_launch_leaves_a_living_one_alone() -> None:
    launcher, path, _, region = start_launcher()
    with run_directory() as other:
        assert path.exists()
        assert region.exists()
        assert other != path
    close(launcher)


def test_a_sweep_spares_processes_of_other_launches(tmp_path: Path) -> None:
    environment = {reaper.RUN_VARIABLE: str(tmp_path / secrets.token_hex(4))}
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1, env=environment) as other:
        reaper.sweep(tmp_path)
        assert other.poll() is None
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait() == 0


@pytest.mark.parametrize("name", ["my files", "Büro", "x" * 70, "quote'", "dollar$"])
def test_a_temporary_directory_that_breaks_triton_is_not_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    with run_directory() as path:
        assert name not in str(path)
        assert str(path).isascii()
        assert len(str(path)) < 107 - len("/engine.sock.lock")


def test_no_place_for_temporary_files_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", "/no such directory")
    monkeypatch.setattr("backend.launcher.run_directory._FALLBACKS", ("/neither",))
    with pytest.raises(ConfigError, match="no directory for temporary files: TMPDIR is '/no such directory'"):
        run_directory().__enter__()


def test_a_directory_of_launches_that_others_may_enter_is_closed(tmp_path: Path) -> None:
    shared = tmp_path / f"bros-{os.getuid()}"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    with run_directory():
        assert shared.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["", "run"])
def test_nothing_is_written_behind_a_link_in_the_place_of_a_directory(name: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    link = tmp_path / f"bros-{os.getuid()}" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="is no directory: remove it, or set TMPDIR"):
        run_directory().__enter__()
    assert list(elsewhere.iterdir()) == []
    assert elsewhere.stat().st_mode & 0o777 == 0o755


def test_what_another_user_put_there_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = os.getuid() + 1
    planted = tmp_path / f"bros-{somebody}"
    planted.mkdir(mode=0o755)
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    with pytest.raises(ConfigError, match="belongs to another user"):
        run_directory().__enter__()
    assert list(planted.iterdir()) == []
