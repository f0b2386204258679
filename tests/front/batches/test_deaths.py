"""A process that dies at any moment loses no line of a batch and repeats none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from front.batches.service import open_batches
from front.batches.settings import WINDOW_S, BatchSettings
from tests.front.batches.dying import NUM_LINES, REFUSED, answer, prepare

SEEDS = [str(seed) for seed in range(6)]
TIMEOUT_S = 120.0


def ends(*arguments: str) -> list[dict[str, Any]]:
    """Return how the batches of a dying process ended."""
    command = [sys.executable, "-m", "tests.front.batches.dying", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_whole(end: dict[str, Any]) -> None:
    """Every line has one result, in the file where it belongs, and nothing else lies in the folder."""
    assert end["status"] == "completed"
    assert end["counts"] == {"total": NUM_LINES, "completed": NUM_LINES - 1, "failed": 1}
    answers = [json.loads(line) for line in end["output"].splitlines()]
    names = {f"r{number}" for number in range(NUM_LINES)}
    assert Counter(line["custom_id"] for line in answers) == dict.fromkeys(names - {REFUSED}, 1)
    assert all(line["response"]["body"]["id"] == f"say {line['custom_id']}" for line in answers)
    assert [json.loads(line)["custom_id"] for line in end["errors"].splitlines()] == [REFUSED]
    assert end["sizes_fit"]
    assert end["left"] == []


def test_a_death_at_each_step_to_the_disk_costs_nothing(tmp_path: Path) -> None:
    found = ends("steps", str(tmp_path))
    assert len(found) > 2 * NUM_LINES
    assert [end["num_deaths"] for end in found] == [1] * (len(found) - 1) + [0]
    for end in found:
        assert_whole(end)


def test_deaths_at_any_moments_cost_nothing(tmp_path: Path) -> None:
    found = ends("moments", str(tmp_path), *SEEDS)
    assert any(end["num_deaths"] for end in found)  # a slow machine gets less done between two deaths
    for end in found:
        assert_whole(end)


@pytest.mark.slow
def test_many_deaths_at_any_moments_cost_nothing(tmp_path: Path) -> None:
    for end in ends("moments", str(tmp_path), *(str(seed) for seed in range(100, 160))):
        assert_whole(end)


def test_lines_after_a_clock_was_set_back_are_due_within_the_window(tmp_path: Path) -> None:
    """A deadline of years would have the engine refuse each of them."""
    prepare(tmp_path)  # a batch that expires in a far future
    lefts_ms: list[float | None] = []

    async def note(url: str, body: bytes, left_ms: float | None) -> dict[str, Any]:
        lefts_ms.append(left_ms)
        return await answer(url, body, left_ms)

    async def main() -> None:
        async with open_batches(tmp_path, note, BatchSettings(first_wait_s=0.0, disk_wait_s=0.0)) as batches:
            await batches.join()

    asyncio.run(main())
    assert set(lefts_ms) == {WINDOW_S * 1e3}
