"""Compiled loops find a folder, and only one that is this user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backend.server import kernel_folder
from backend.server.kernel_folder import TORCH_VARIABLE, VARIABLE, provide_kernel_folder, provide_torch_folder


@pytest.fixture(autouse=True)
def nothing_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither checkout nor home: not even root makes a folder in /proc."""
    monkeypatch.setattr(kernel_folder, "REPOSITORY_ROOT", Path("/proc/checkout"))
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv(TORCH_VARIABLE, "")


def test_where_nothing_else_can_be_written_it_is_a_private_temporary_folder(tmp_path: Path) -> None:
    provide_kernel_folder()
    assert Path(os.environ[VARIABLE]).is_relative_to(tmp_path)
    assert Path(os.environ[VARIABLE]).parent.stat().st_mode & 0o077 == 0


def test_a_home_that_can_be_written_is_left_to_numba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_kernel_folder()
    assert os.environ[VARIABLE] == ""


def test_a_folder_given_is_kept_if_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "given"))
    provide_kernel_folder()
    assert os.environ[VARIABLE] == str(tmp_path / "given")
    monkeypatch.setenv(VARIABLE, "/proc/given")
    provide_kernel_folder()
    assert os.environ[VARIABLE] != "/proc/given"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_a_folder_of_another_user_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"bros-{os.getuid()}").mkdir()
    os.chown(tmp_path / f"bros-{os.getuid()}", 65_534, 65_534)
    provide_kernel_folder()
    assert os.environ[VARIABLE] == ""
    assert "compiled anew at each start" in caplog.text
    provide_torch_folder()
    assert os.environ[TORCH_VARIABLE] == ""
    assert "no folder of this user's alone" in caplog.text


def test_torch_compiles_into_a_private_folder(tmp_path: Path) -> None:
    """Its own choice is `torchinductor_USER` in the temporary directory, whoever made that."""
    provide_torch_folder()
    folder = Path(os.environ[TORCH_VARIABLE])
    assert folder.is_relative_to(tmp_path)
    assert folder.parent.stat().st_mode & 0o077 == 0


def test_a_folder_given_to_torch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TORCH_VARIABLE, str(tmp_path / "given"))
    provide_torch_folder()
    assert os.environ[TORCH_VARIABLE] == str(tmp_path / "given")
