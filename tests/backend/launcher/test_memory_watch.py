"""How much memory a server may take, and when it has taken more."""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path

import pytest

from backend.launcher.memory_watch import SHARE_OF_MACHINE, default_bytes, first_excess, own_bytes
from backend.launcher.options import make_parser


def test_a_process_that_takes_more_is_noticed() -> None:
    num_bytes = own_bytes(os.getpid())
    assert num_bytes > 2**20
    with mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:  # new ones, unlike an allocator's
        pages[:] = os.urandom(len(pages))
        limit = num_bytes + len(pages) // 2
        assert asyncio.run(first_excess(os.getpid(), limit)) > limit


def test_a_process_within_its_limit_is_not() -> None:
    async def look() -> None:
        async with asyncio.timeout(0.01):
            await first_excess(os.getpid(), 2**60)

    with pytest.raises(TimeoutError):
        asyncio.run(look())


def test_a_process_that_has_ended_takes_nothing() -> None:
    assert own_bytes(2**22 + 1) == 0


@pytest.mark.parametrize(
    ("words", "is_limit"), [("1073741824\n", True), ("max\n", False), ("9223372036854771712", False)]
)
def test_a_container_has_a_share_of_its_own(words: str, is_limit: bool, tmp_path: Path) -> None:
    (tmp_path / "limit").write_text(words)
    machine = default_bytes([])
    found = default_bytes([tmp_path / "limit", tmp_path / "nothing"])
    assert found == (int(SHARE_OF_MACHINE * 2**30) if is_limit else machine)


@pytest.mark.parametrize("words", ["-1", "nan", "inf", "a"])
def test_a_limit_is_a_size(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--triton-memory-gib", words])
    assert "--triton-memory-gib" in capsys.readouterr().err
