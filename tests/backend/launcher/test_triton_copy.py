"""The embedded server runs without what lets a client end it, where a copy can run; warnings tell the rest."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from pathlib import Path

import pytest

from backend.launcher.triton_copy import BODY_PER_MESSAGE, copy_server, core_edits, edits

MAX_BYTES = 0x01020304
EDITS = edits(MAX_BYTES)
CORE_EDITS = core_edits()
CORE = "libtritonserver-0.so"
ERROR_MODE, DIVISION, MESSAGE_LIMIT, BODY_LIMIT, COMPRESSION = EDITS
SWITCH_BYTES = 5  # the end of the division's pattern, which stays
# What takes (output's size, element's size) as a C function does, and what gives rax back.
TAKE, GIVE = bytes.fromhex("41 55 49 89 fd 89 f0"), bytes.fromhex("41 5d c3")


def make_package(directory: Path, content: bytes) -> Path:
    root = directory / "site-packages" / "pytriton" / "tritonserver"
    for folder in (root / "bin", root / "lib", root.parents[1] / "nvidia_pytriton.libs"):
        folder.mkdir(parents=True)
    (root / "bin" / "tritonserver").write_bytes(content)
    return root


def test_the_copy_differs_in_the_edited_places_only(tmp_path: Path) -> None:
    root = make_package(tmp_path, b"ab".join(edit.found for edit in EDITS))
    server, warnings = copy_server(root, tmp_path, EDITS)
    assert server.read_bytes() == b"ab".join(edit.instead for edit in EDITS)
    assert os.access(server, os.X_OK)
    assert warnings == []


def test_the_copy_holds_the_limit_of_messages() -> None:
    assert MESSAGE_LIMIT.instead.endswith(MAX_BYTES.to_bytes(4, "little"))
    assert BODY_LIMIT.instead[1:5] == (BODY_PER_MESSAGE * MAX_BYTES).to_bytes(4, "little")


@pytest.mark.parametrize("missing", EDITS, ids=lambda edit: edit.danger)
@pytest.mark.parametrize("count", [0, 2])
def test_a_place_that_is_not_there_once_stays_and_is_told(missing: object, count: int, tmp_path: Path) -> None:
    content = b"".join(edit.found * (count if edit is missing else 1) for edit in EDITS)
    server, warnings = copy_server(make_package(tmp_path, content), tmp_path, EDITS)
    assert server.read_bytes() == b"".join(edit.found * count if edit is missing else edit.instead for edit in EDITS)
    (warning,) = warnings
    assert f"{count} matches" in warning


def test_the_copy_finds_its_libraries_as_the_original_does(tmp_path: Path) -> None:
    root = make_package(tmp_path, ERROR_MODE.found)
    server, _ = copy_server(root, tmp_path, EDITS)
    assert (server.parent / "../lib").resolve() == root / "lib"
    assert (server.parent / "../../../nvidia_pytriton.libs").is_dir()


def make_core(root: Path, content: bytes) -> Path:
    libraries = root.parents[1] / "nvidia_pytriton.libs"
    (libraries / CORE).write_bytes(content)
    (libraries / "libother.so").write_bytes(b"other")
    return libraries


def test_the_copy_runs_with_an_edited_library_beside_links_to_the_rest(tmp_path: Path) -> None:
    root = make_package(tmp_path, b"")
    libraries = make_core(root, b"|".join(edit.found for edit in CORE_EDITS))
    server, warnings = copy_server(root, tmp_path, [], CORE_EDITS)
    found = server.parent / "../../../nvidia_pytriton.libs"
    assert (found / CORE).read_bytes() == b"|".join(edit.instead for edit in CORE_EDITS)
    assert (found / "libother.so").resolve() == libraries / "libother.so"
    assert warnings == []


@pytest.mark.parametrize("count", [0, 2])
def test_a_library_of_another_build_stays_and_is_told(count: int, tmp_path: Path) -> None:
    root = make_package(tmp_path, ERROR_MODE.found)
    libraries = make_core(root, b"".join(edit.found for edit in CORE_EDITS) * count)
    server, warnings = copy_server(root, tmp_path, [ERROR_MODE], CORE_EDITS)
    assert (server.parent / "../../../nvidia_pytriton.libs" / CORE).resolve() == libraries / CORE
    words = f"libtritonserver is of another build ({count} matches, not 1)"
    assert warnings == [f"{words}: {edit.danger}" for edit in CORE_EDITS]


def test_the_renamed_argument_has_the_length_of_the_other() -> None:
    assert COMPRESSION.instead.rstrip(b"\0") == b"grpc.compression_enabled_algorithms_bitset"
    assert COMPRESSION.found.endswith(b"_ms\0")


def test_the_jump_past_the_names_of_inputs_leads_where_the_one_for_no_inputs_does() -> None:
    (found, instead) = CORE_EDITS[1].found, CORE_EDITS[1].instead
    start = found.index(bytes.fromhex("0f 84"))
    assert instead[start : start + 2] == bytes.fromhex("90 e9")  # both take the same four bytes, and end behind them
    assert instead[start + 2 :] == found[start + 2 :]
    assert instead[:start] == found[:start]


def test_a_server_of_another_make_is_run_as_it_is(tmp_path: Path) -> None:
    root = make_package(tmp_path, b"")
    server, warnings = copy_server(root, tmp_path, EDITS)
    assert server == root / "bin" / "tritonserver"
    assert len(warnings) == len(EDITS)


def test_where_no_copy_can_be_run_the_original_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    root = make_package(tmp_path, ERROR_MODE.found)
    server, (warning,) = copy_server(root, tmp_path, EDITS)
    assert server == root / "bin" / "tritonserver"
    assert "noexec" in warning


def test_where_there_is_no_room_for_a_copy_the_original_is_run(tmp_path: Path) -> None:
    root = make_package(tmp_path, ERROR_MODE.found)
    (tmp_path / "full").touch()
    server, (warning,) = copy_server(root, tmp_path / "full", EDITS)
    assert server == root / "bin" / "tritonserver"
    assert "runs unchanged" in warning


def test_a_copy_that_finds_room_for_a_part_leaves_the_room_to_the_rest_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = make_package(tmp_path, ERROR_MODE.found)
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    monkeypatch.setattr(Path, "write_bytes", fill)
    server, (warning,) = copy_server(root, run_directory, EDITS)
    assert server == root / "bin" / "tritonserver"
    assert "No space left" in warning
    assert not list(run_directory.iterdir())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs code for x86-64")
@pytest.mark.parametrize(
    ("output_bytes", "element_bytes", "num_elements"),
    [(0, 4, 0), (7, 4, 1), (8, 2, 4), (2**32 - 1, 1, 2**32 - 1), (12, 0, 12)],
)
def test_the_division_bears_an_element_size_of_0(output_bytes: int, element_bytes: int, num_elements: int) -> None:
    code = TAKE + DIVISION.instead[:-SWITCH_BYTES] + GIVE
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    divide = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32)(
        ctypes.addressof(ctypes.c_char.from_buffer(memory))
    )
    assert divide(output_bytes, element_bytes) == num_elements
