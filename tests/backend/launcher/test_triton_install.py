"""The embedded server is run without the names by which a client may end it, where a copy of it can be run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backend.core.errors import ConfigError
from backend.launcher import triton_install
from backend.launcher.triton_install import _server, find_triton

MODE = b"\0triton_grpc_error\0"
NO_LIMIT = bytes.fromhex("41c74550ffffff7f")
MAX_BYTES = 0x01020304


def make_package(directory: Path, content: bytes) -> Path:
    root = directory / "site-packages" / "pytriton" / "tritonserver"
    for folder in (root / "bin", root / "lib", root.parents[1] / "nvidia_pytriton.libs"):
        folder.mkdir(parents=True)
    (root / "bin" / "tritonserver").write_bytes(content)
    return root


def test_the_copy_differs_in_that_name_only(tmp_path: Path) -> None:
    server = _server(make_package(tmp_path, b"ab" + MODE + b"cd"), tmp_path, MAX_BYTES)
    assert server.read_bytes() == b"ab\0TRITON_GRPC_ERROR\0cd"
    assert os.access(server, os.X_OK)


@pytest.mark.parametrize(("num", "expected"), [(1, NO_LIMIT[:4] + b"\4\3\2\1"), (2, 2 * NO_LIMIT)])
def test_the_copy_bounds_messages_where_that_is_one_instruction(num: int, expected: bytes, tmp_path: Path) -> None:
    content = _server(make_package(tmp_path, MODE + num * NO_LIMIT), tmp_path, MAX_BYTES).read_bytes()
    assert content.endswith(expected)


def test_the_copy_finds_its_libraries_as_the_original_does(tmp_path: Path) -> None:
    root = make_package(tmp_path, MODE)
    server = _server(root, tmp_path, MAX_BYTES)
    assert (server.parent / "../lib").resolve() == root / "lib"
    assert (server.parent / "../../../nvidia_pytriton.libs").resolve() == root.parents[1] / "nvidia_pytriton.libs"


@pytest.mark.parametrize("content", [b"", MODE + MODE], ids=["without the name", "another build"])
def test_a_server_of_another_make_is_run_as_it_is(content: bytes, tmp_path: Path) -> None:
    root = make_package(tmp_path, content)
    assert _server(root, tmp_path, MAX_BYTES) == root / "bin" / "tritonserver"


def test_where_no_copy_can_be_run_the_original_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    root = make_package(tmp_path, MODE)
    assert _server(root, tmp_path, MAX_BYTES) == root / "bin" / "tritonserver"


def test_where_there_is_no_room_for_a_copy_the_original_is_run(tmp_path: Path) -> None:
    root = make_package(tmp_path, MODE)
    (tmp_path / "full").touch()
    assert _server(root, tmp_path / "full", MAX_BYTES) == root / "bin" / "tritonserver"


def test_a_checkout_that_the_stubs_cannot_name_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(triton_install, "REPOSITORY_ROOT", Path("/home/büro/bros"))
    with pytest.raises(ConfigError, match="'/home/büro/bros' has letters outside ASCII"):
        find_triton(None, tmp_path)


def test_the_pinned_package_has_each_name_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    server = find_triton(None, tmp_path).binary
    assert server.is_relative_to(tmp_path)
    assert MODE not in server.read_bytes()
