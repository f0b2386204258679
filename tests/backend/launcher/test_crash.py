"""A crash that Triton's log tells of is seen, in this life and in whole lines only."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backend.launcher import crash, log_bound

EARLIER = b"Signal (11) received.\n"
STARTED = b"I1129 server.cc:604] started\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (path := tmp_path / "triton.log").write_bytes(EARLIER + STARTED)
    return path


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (b"Signal (6) received.\n 0# 0x5\n", 6),
        (b"I1129 x\nSignal (11) received", 11),
        (b"Signal (15) received.\n", None),
        (b'I1129 request.cc:1] "Signal (6) received."\n', None),
        (b"", None),
    ],
    ids=["abort", "segmentation fault", "asked to end", "a client's words", "nothing"],
)
def test_a_crash_is_a_line_of_its_own_in_this_life(log: Path, written: bytes, number: int | None) -> None:
    with log.open("ab") as file:
        file.write(written)
    assert crash.crash_in(log, len(EARLIER))[0] == number


def test_a_line_that_comes_in_two_parts_is_read_whole(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "PERIOD_S", 0.0)

    async def run() -> int:
        with log.open("ab", buffering=0) as file:
            file.write(b"Signal (")
            waiting = asyncio.create_task(crash.first_crash(log, len(EARLIER)))
            await asyncio.sleep(0)
            file.write(b"6) received.\n")
            return await waiting

    assert asyncio.run(run()) == 6


def test_a_log_that_is_too_long_is_emptied_and_read_on(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections beyond Triton's descriptors wrote 43 GB an hour. An earlier life's crash is not seen again."""
    monkeypatch.setattr(crash, "PERIOD_S", 0.0)
    monkeypatch.setattr(log_bound, "MAX_LOG_BYTES", 1000)
    monkeypatch.setattr(log_bound, "KEPT_BYTES", 100)

    async def run() -> int:
        with log.open("ab", buffering=0) as file:  # as the server writes: at the end, wherever that is
            waiting = asyncio.create_task(crash.first_crash(log, len(EARLIER)))
            for _ in range(3):
                file.write(b"too many open files\n" * 60)
                while log.stat().st_size > 1000:
                    await asyncio.sleep(0)
            assert not waiting.done()
            file.write(b"Signal (6) received.\n")
            return await waiting

    assert asyncio.run(run()) == 6
    assert log.with_name("triton.log.1").read_bytes() == b"too many open files\n" * 5


def test_a_log_that_is_gone_tells_of_no_crash(tmp_path: Path) -> None:
    assert crash.crash_in(tmp_path / "gone", 7) == (None, 7)
