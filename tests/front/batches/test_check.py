"""The check of an input: its bounds, and that it ends when nobody waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.batch.lines import CHAT
from front.batches import check
from front.batches.check import CheckStoppedError, check_input
from tests.front.batches.house import chat_line, to_bytes


def write(folder: Path, content: bytes) -> Path:
    path = folder / "in"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"0\n" * 100, b"\n" * 100 + b"0\n"], ids=["requests", "blanks"])
def test_lines_beyond_the_bound_are_not_parsed(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "parse_line", None)
    num_lines, errors = check_input(write(tmp_path, content), CHAT, max_lines=8)
    assert (num_lines, [error.code for error in errors]) == (9, ["too_many_tasks"])


def test_blank_lines_between_requests_are_fine(tmp_path: Path) -> None:
    lines = [line for index in range(8) for line in (chat_line(f"r{index}"), "", "")]
    assert check_input(write(tmp_path, to_bytes(lines)), CHAT, max_lines=8) == (8, [])


@pytest.mark.parametrize("num_looks", [0, 1, 3, 6])
def test_a_check_that_is_stopped_ends(tmp_path: Path, num_looks: int) -> None:
    looks = iter([False] * num_looks + [True])
    with pytest.raises(CheckStoppedError):
        check_input(
            write(tmp_path, to_bytes([chat_line("a"), chat_line("b"), chat_line("c")])), CHAT, 8, lambda: next(looks)
        )


def test_an_error_quotes_no_long_name(tmp_path: Path) -> None:
    path = write(tmp_path, to_bytes([chat_line("a" * 10_000)] * 2))
    ((error,),) = [check_input(path, CHAT, 8)[1]]
    assert error.code == "duplicate_custom_id"
    assert len(error.message) < 200
