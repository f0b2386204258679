"""What another user planted under a name that we write to is neither followed, cut nor read: each writer is tried."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.core.errors import ConfigError
from backend.core.ownership import is_foreign, make_own_folder, own
from backend.engine.step_file import StepFile
from backend.launcher.child import Child
from backend.launcher.launch import Command
from backend.server.listener import Listener

WORDS = b"somebody's words"
GiveAway = Callable[[Path], None]
Write = Callable[[Path], object]


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> GiveAway:
    """Make a path, a link itself, another user's: by root in truth, else by becoming another user in name."""

    def give(path: Path) -> None:
        if os.getuid() == 0:
            os.lchown(path, 65_534, 65_534)
        else:
            monkeypatch.setattr(os, "getuid", lambda: path.lstat().st_uid + 1)

    return give


def append(path: Path) -> None:
    with open(path, "ab", opener=own) as file:
        file.write(b"ours")


def start_child(path: Path) -> None:
    asyncio.run(Child(Command("x", ["/bin/true"], {}, path)).start())


def listen(path: Path) -> None:
    Listener(path.with_suffix("")).close()


WRITERS: dict[str, tuple[str, Write]] = {
    "the helper": ("x", append),
    "a log": ("engine.log", start_child),
    "the file of steps": ("steps.jsonl", StepFile),
    "the engine's lock": ("s.lock", listen),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("is_link", [True, False])
def test_what_another_user_planted_is_left_as_it_is(
    name: str, write: Write, is_link: bool, tmp_path: Path, give_away: GiveAway
) -> None:
    target = tmp_path / "target"
    planted = tmp_path / name if is_link else target
    target.write_bytes(WORDS)
    (tmp_path / name).symlink_to(target)
    give_away(planted)
    with pytest.raises((PermissionError, ConfigError), match="belongs to another user"):
        write(tmp_path / name)
    assert target.read_bytes() == WORDS


def test_a_link_that_comes_between_look_and_opening_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").write_bytes(WORDS)
    (tmp_path / "x").symlink_to(tmp_path / "target")
    monkeypatch.setattr("backend.core.ownership.is_foreign", lambda _: False)
    monkeypatch.setattr(os.path, "islink", lambda _: False)
    with pytest.raises(OSError, match="symbolic links"):
        append(tmp_path / "x")
    assert (tmp_path / "target").read_bytes() == WORDS


def test_a_link_of_ours_is_followed(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "target")
    append(tmp_path / "x")
    append(tmp_path / "x")
    assert (tmp_path / "target").read_bytes() == b"oursours"
    assert (tmp_path / "target").stat().st_mode & 0o077 == 0


def test_a_file_opened_anew_begins_empty(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(WORDS)
    with open(tmp_path / "x", "w", opener=own) as file:
        file.write("new")
    assert (tmp_path / "x").read_text() == "new"


def test_a_device_of_root_is_opened_as_it_is() -> None:
    with open("/dev/null", "w", opener=own) as file:
        assert file.write("gone") == 4


def test_a_folder_of_another_user_is_refused(tmp_path: Path, give_away: GiveAway) -> None:
    make_own_folder(tmp_path / "ours")
    make_own_folder(tmp_path / "ours")
    assert not is_foreign(tmp_path / "nothing")
    give_away(tmp_path / "ours")
    with pytest.raises(PermissionError, match="belongs to another user"):
        make_own_folder(tmp_path / "ours")
