"""Files and answers of one key: they have bounds, and leave room to other keys."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from client.openai.asked import Json
from client.openai.errors import ApiError
from front.batches.disk import Disk
from front.batches.objects import Batch, Status, StoredFile
from front.batches.service import Batches, open_batches
from front.batches.settings import BatchSettings
from front.batches.store import Cut, Store
from front.batches.uploads import Upload

SETTINGS = BatchSettings(
    max_stored_bytes=200_000, max_own_bytes=150_000, max_open_requests=4, disk_wait_s=0.01, room_check_s=0.0
)
NUM_LINES, ANSWER_BYTES = 100, 5_000


async def answer(_url: str, _body: bytes, _left_ms: float | None) -> Json:
    return {"id": "x", "choices": [{"text": "a" * ANSWER_BYTES}], "usage": {"completion_tokens": 1}}


@asynccontextmanager
async def opened(root: Path, settings: BatchSettings = SETTINGS) -> AsyncIterator[Batches]:
    async with open_batches(root / "data", answer, settings) as batches:
        yield batches


async def upload(batches: Batches, owner: str, data: bytes) -> str:
    part = batches._disk.folder.parts / uuid4().hex
    part.write_bytes(data)
    return (await batches.add_file(owner, Upload(part, "in.jsonl", "batch", len(data)))).id


async def begin(batches: Batches, owner: str) -> str:
    line = {"method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}
    lines = [json.dumps({"custom_id": str(index), **line}) for index in range(NUM_LINES)]
    input_id = await upload(batches, owner, "\n".join(lines).encode())
    return (await batches.add_batch(owner, "/v1/completions", input_id, None)).id


async def wait_for_room(batches: Batches) -> int:
    """Return the used bytes once they stay as they are."""
    used, before = 0, -1
    while used != before or not used:
        before, used = used, await batches._disk(batches._disk.used_bytes)
        await asyncio.sleep(0.2)
    return used


def test_the_files_of_one_key_leave_room_to_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as batches:
            await upload(batches, "greedy", b"x" * 140_000)
            with pytest.raises(
                ApiError, match=r"the files of this key, with .* exceed 150000 bytes: delete"
            ) as refused:
                await upload(batches, "greedy", b"x" * 20_000)
            assert (refused.value.status, refused.value.code) == (413, "storage_full")
            await upload(batches, "other", b"x" * 50_000)

    asyncio.run(main())


def test_answers_count_while_they_are_written_and_the_batch_waits_for_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as batches:
            batch_id = await begin(batches, "greedy")
            used = await wait_for_room(batches)
            assert 150_000 < used < 150_000 + 2 * SETTINGS.max_open_requests * ANSWER_BYTES
            batch = await batches.batch("greedy", batch_id)
            assert batch.status is Status.IN_PROGRESS
            assert 0 < batch.counts.completed < NUM_LINES
            with pytest.raises(ApiError, match="of this key"):
                await upload(batches, "greedy", b"x")
            await upload(batches, "other", b"x" * 10_000)

    asyncio.run(main())


def test_no_line_is_sent_again_where_the_room_runs_out(tmp_path: Path) -> None:
    """Open ones were broken off and sent again, each time that their batch was tried again."""
    sent: list[bytes] = []

    async def slow_answer(url: str, body: bytes, left_ms: float | None) -> Json:
        sent.append(body)
        await asyncio.sleep(0.01 * (1 + len(sent) % 7))
        return await answer(url, body, left_ms)

    async def main() -> None:
        async with open_batches(tmp_path / "data", slow_answer, SETTINGS) as batches:
            batch_id = await begin(batches, "greedy")
            await wait_for_room(batches)
            assert len(sent) == (await batches.batch("greedy", batch_id)).counts.completed

    asyncio.run(main())


async def complete(tmp_path: Path) -> None:
    """Run a batch to its end, where all its lines must have answers."""
    async with opened(tmp_path) as batches:
        batch_id = await begin(batches, "one")
        async with asyncio.timeout(30.0):  # one that waits for room waits for a day
            await batches.join()
        batch = await batches.batch("one", batch_id)
        assert (batch.status, batch.counts.completed) == (Status.COMPLETED, NUM_LINES)


def test_a_batch_goes_on_where_room_comes_back_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that was begun already looked again, found room, and most lines were never sent."""
    lacks = [None] * 5 + ["full"]
    monkeypatch.setattr(Disk, "lack_of_room", lambda *_: lacks.pop(0) if lacks else None)

    asyncio.run(complete(tmp_path))
    assert not lacks


def test_a_batch_without_another_line_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its answers were there, and it waited until it expired."""
    room = iter([None] * NUM_LINES)
    monkeypatch.setattr(Disk, "lack_of_room", lambda *_: next(room, "full"))

    asyncio.run(complete(tmp_path))
    assert next(room, "full") == "full"


def test_a_batch_that_is_taken_up_with_all_its_answers_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines with answers counted as lines without room, and it waited until it expired."""
    room = iter([None] * NUM_LINES)
    monkeypatch.setattr(Disk, "lack_of_room", lambda *_: next(room, "full"))
    monkeypatch.setattr("client.batch.run._SKIPPED_BYTES", 0)  # of lines with answers, from one pause to the next
    moves = [Status.FINALIZING]  # that the disk refuses

    def move(
        store: Store, batch: Batch, *files: Sequence[StoredFile], real: Callable[..., Batch] = Store.move
    ) -> Batch:
        if batch.status in moves:
            moves.remove(batch.status)
            raise OSError(errno.EIO, "refused")
        return real(store, batch, *files)

    monkeypatch.setattr(Store, "move", move)
    asyncio.run(complete(tmp_path))
    assert not moves


def test_a_key_without_room_begins_no_batch(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as batches:
            await begin(batches, "greedy")
            await wait_for_room(batches)
            file_id = (await batches.batches("greedy", Cut(1)))[0].input_id
            with pytest.raises(ApiError, match="input_file_id: the files of this key"):
                await batches.add_batch("greedy", "/v1/completions", file_id, None)

    asyncio.run(main())


def test_a_batch_goes_on_once_files_are_deleted(tmp_path: Path) -> None:
    roomy = BatchSettings(max_own_bytes=800_000, max_open_requests=4, disk_wait_s=0.01, room_check_s=0.0)

    async def main() -> None:
        async with opened(tmp_path, roomy) as batches:
            ballast = await upload(batches, "greedy", b"x" * 600_000)
            batch_id = await begin(batches, "greedy")
            await wait_for_room(batches)
            assert (await batches.batch("greedy", batch_id)).status is Status.IN_PROGRESS
            await batches.delete_file("greedy", ballast)
            await batches.join()
            batch = await batches.batch("greedy", batch_id)
            assert (batch.status, batch.counts.completed) == (Status.COMPLETED, NUM_LINES)

    asyncio.run(main())


def test_the_files_that_batches_make_count_too(tmp_path: Path) -> None:
    """Batches of one line made 38 files a second, each of some hundred bytes, without an end."""
    few = BatchSettings(max_files=5, max_own_bytes=10_000_000, max_stored_bytes=10_000_000)

    async def main() -> None:
        async with opened(tmp_path, few) as batches:
            for _ in range(2):  # an input and an output each
                await begin(batches, "greedy")
                await batches.join()
            await upload(batches, "greedy", b"x")
            file_id = (await batches.batches("greedy", Cut(1)))[0].input_id
            with pytest.raises(ApiError, match="files: this key has 5; more than 5 are too many: delete some"):
                await batches.add_batch("greedy", "/v1/completions", file_id, None)
            await upload(batches, "other", b"x")

    asyncio.run(main())
