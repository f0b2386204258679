"""A folder of files and batches that cannot be used is named before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.core import ownership
from front.batches.folder import check_folder, open_folder
from front.batches.store import StoreError
from front.main import main


def test_a_folder_that_a_process_owns_is_refused_until_it_is_given_back(tmp_path: Path) -> None:
    with open_folder(tmp_path), pytest.raises(StoreError, match="another process owns these files and batches"):
        check_folder(tmp_path)
    check_folder(tmp_path)


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "plain").touch()
    with pytest.raises(StoreError, match="plain cannot hold files and batches: File exists"):
        check_folder(path)
    with pytest.raises(StoreError, match="below cannot hold files and batches: Not a directory"):
        check_folder(path / "below")


def test_a_folder_with_a_strange_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="cannot hold files and batches: file is not a database"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", ["", "files", "parts", "openai.lock", "state.sqlite3"])
def test_what_another_user_planted_is_left_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (private := tmp_path / "private").mkdir()
    diary, planted = private / ("f" * 32), tmp_path / "state" / name
    diary.touch()
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(private if name in ("", "files", "parts") else tmp_path / "made")
    monkeypatch.setattr(ownership, "_owners", lambda path: [65_534] if Path(path) == planted else [])
    with pytest.raises(StoreError, match="belongs to another user"):
        check_folder(tmp_path / "state")
    assert diary.exists(), "a file of the operator's was deleted"
    assert not (tmp_path / "made").exists(), "a link of a stranger was followed"


def test_the_check_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.umask", lambda _: 0)  # of the tests' own process
    monkeypatch.setenv("GRPC_EXPERIMENTS", "")
    (path := tmp_path / "plain").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["--check", "--data-dir", str(path)])
    assert capsys.readouterr().err == f"bros-openai: {path} cannot hold files and batches: File exists\n"
