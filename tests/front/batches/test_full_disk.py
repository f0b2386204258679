"""A disk that fills: batches wait for it, clients are told, and deleting makes room."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from front.batches.settings import BatchSettings
from front.batches.store import Store
from tests.front.batches.house import begin, chat_line, ended, openai_of, results, serving


class FullDisk:
    """Stands in for the disk's calls: each is refused while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self.num_refused = 0
        self.room_after = 10**9  # refusals
        self.num_written_before: int | None = None  # results
        monkeypatch.setattr(os, "write", self.refusing(os.write))

    def refusing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, data: Any) -> Any:
            is_result = bytes(data[:6]) == b'{"id":'
            if is_result and self.num_written_before is not None:
                self.is_full = self.num_written_before == 0
                self.num_written_before = max(0, self.num_written_before - 1)
            if self.is_full and is_result:
                self.num_refused += 1
                self.is_full = self.num_refused < self.room_after
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(descriptor, data)

        return call


def test_a_batch_waits_for_a_full_disk_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    disk.is_full, disk.room_after = True, 3

    async def main() -> None:
        async with serving(tmp_path) as http:
            client = openai_of(http)
            batch = await ended(client, await begin(client, [chat_line(f"r{index}") for index in range(4)]))
            assert (batch.status, disk.num_refused) == ("completed", 3)
            names = [line["custom_id"] for line in await results(client, batch.output_file_id)]
            assert sorted(names) == ["r0", "r1", "r2", "r3"]

    asyncio.run(main())


def test_a_batch_that_waits_for_the_disk_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    disk.num_written_before = 2
    waiting = BatchSettings(first_wait_s=0.0, disk_wait_s=60.0)

    async def main() -> None:
        async with serving(tmp_path, settings=waiting) as http:
            client = openai_of(http)
            batch = await begin(client, [chat_line(f"r{index}") for index in range(4)])
            while not disk.num_refused:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # its results are closed by then
            counts = (await client.batches.retrieve(batch.id)).request_counts
            assert counts is not None
            assert (counts.total, counts.completed) == (4, 2)

    asyncio.run(main())


def test_a_full_disk_is_a_507_and_a_delete_frees_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as http:
            client = openai_of(http)
            file = await client.files.create(file=("in", b"\n" * 1000), purpose="batch")
            store = http._transport.app.state.batches._disk.store  # type: ignore[attr-defined]  # ours, behind httpx
            fill(store)
            asked = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
            asked["metadata"] = {f"k{index}": "x" * 500 for index in range(16)}
            refused = await http.post("/v1/batches", json=asked)
            assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
            await http.delete(f"/v1/files/{file.id}")
            assert not (tmp_path / "files" / file.id).exists()
            gone = await http.post("/v1/batches", json=asked)
            assert gone.status_code in (404, 507)

    asyncio.run(main())


def fill(store: Store) -> None:
    """Let the database have no page more than it has."""
    (num_pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {num_pages}")
