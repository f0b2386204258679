"""Files and batches of every key: what each route asks for, with its bounds. Everything it raises is an ApiError."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from msgspec.structs import replace

from client.batch.sender import Answer
from client.openai.errors import ApiError, not_found
from front.batches.disk import Disk
from front.batches.folder import open_folder
from front.batches.objects import INPUT, Batch, Status, StoredFile, new_batch_id, new_file_id
from front.batches.runner import Clock, Runner
from front.batches.settings import WINDOW_S, BatchSettings
from front.batches.store import Cut
from front.batches.uploads import Upload, Uploads

T = TypeVar("T")


class Batches:
    """All files and batches of one folder."""

    def __init__(self, disk: Disk, runner: Runner, settings: BatchSettings, now_s: Clock = time.time) -> None:
        self.uploads = Uploads(disk.folder, settings)
        self._disk = disk
        self._runner = runner
        self._settings = settings
        self._now_s = now_s
        self._lists: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by owner, while one is made

    # --- files

    async def add_file(self, owner: str, upload: Upload) -> StoredFile:
        """Keep an upload, whose part lies on the disk, as a file."""
        file = StoredFile(
            id=new_file_id(),
            owner=owner,
            purpose=upload.purpose,
            filename=upload.filename,
            num_bytes=upload.num_bytes,
            created_s=int(self._now_s()),
        )
        await self._disk.change(self._keep, file, upload.part)
        return file

    async def file(self, owner: str, file_id: str) -> StoredFile:
        """Return a file."""
        return _found(await self._disk(self._disk.store.file, owner, file_id), "file", file_id)

    async def content(self, owner: str, file_id: str) -> tuple[StoredFile, Path]:
        """Return a file, and where its content lies."""
        file = await self.file(owner, file_id)
        return file, self._disk.folder.content(file.id)

    async def files(self, owner: str, cut: Cut, purpose: str | None) -> list[StoredFile]:
        """Return files, by their time."""
        async with self._turn(owner):
            found = await self._disk(self._disk.store.files, owner, cut, purpose)
        return _found(found, "file", cut.after or "", "after")

    async def delete_file(self, owner: str, file_id: str) -> None:
        """Delete a file that no unfinished batch reads."""
        await self._disk.change(self._delete, owner, file_id)

    # --- batches

    async def add_batch(self, owner: str, endpoint: str, input_id: str, metadata: Mapping[str, str] | None) -> Batch:
        """Begin a batch."""
        now_s = int(self._now_s())
        batch = Batch(
            id=new_batch_id(),
            owner=owner,
            endpoint=endpoint,
            input_id=input_id,
            output_id=new_file_id(),
            errors_id=new_file_id(),
            created_s=now_s,
            expires_s=now_s + WINDOW_S,
            metadata=None if metadata is None else dict(metadata),
        )
        await self._disk.change(self._begin, batch)
        self._runner.start(batch)
        return batch

    async def batch(self, owner: str, batch_id: str) -> Batch:
        """Return a batch as it stands now."""
        return self._now(_found(await self._disk(self._disk.store.batch, owner, batch_id), "batch", batch_id))

    async def batches(self, owner: str, cut: Cut) -> list[Batch]:
        """Return batches, the newest first."""
        async with self._turn(owner):
            batches = await self._disk(self._disk.store.batches, owner, cut)
        return [self._now(batch) for batch in _found(batches, "batch", cut.after or "", "after")]

    async def cancel(self, owner: str, batch_id: str) -> Batch:
        """Break off a batch; what it has, it keeps."""
        batch = await self._disk.change(self._cancel, owner, batch_id)
        self._runner.stop(batch_id)
        return self._now(batch)

    async def join(self) -> None:
        """Wait until every batch has ended."""
        await self._runner.join()

    def _turn(self, owner: str) -> asyncio.Lock:
        """Return what lets one list of `owner` at a time wait for the disk: others are not behind all of them."""
        return self._lists.setdefault(owner, asyncio.Lock())

    def _now(self, batch: Batch) -> Batch:
        return replace(batch, counts=self._runner.counts(batch))

    # --- on the disk's thread

    def _keep(self, file: StoredFile, part: Path) -> None:
        store = self._disk.store
        self._check_num_files(file.owner)
        self._check_room(file.owner, file.num_bytes, "file")
        self._disk.folder.keep(part, file.id)
        store.add_file(file)

    def _check_num_files(self, owner: str) -> None:
        if (num_files := self._disk.store.num_files(owner)) >= self._settings.max_files:
            words = f"files: this key has {num_files}; more than {self._settings.max_files} are too many"
            raise ApiError(f"{words}: delete some", status=409)

    def _check_room(self, owner: str, num_bytes: int, param: str) -> None:
        """Raise ApiError where `num_bytes` more would be too much for one key, or for all."""
        if words := self._disk.lack_of_room(owner, num_bytes, self._settings):
            raise ApiError(f"{param}: {words}: delete some", param, status=413, code="storage_full")

    def _delete(self, owner: str, file_id: str) -> None:
        store = self._disk.store
        _found(store.file(owner, file_id), "file", file_id)
        if store.is_in_use(file_id):
            raise ApiError(f"file {file_id!r} is the input of a batch that has not ended", status=409)
        self._disk.folder.content(file_id).unlink(missing_ok=True)  # first: the store needs room to forget
        store.delete_file(owner, file_id)

    def _begin(self, batch: Batch) -> None:
        limits, unfinished = self._settings, self._disk.store.unfinished()
        file = _found(self._disk.store.file(batch.owner, batch.input_id), "file", batch.input_id, "input_file_id")
        if file.purpose != INPUT:
            words = f"input_file_id: {file.id!r} has purpose {file.purpose!r}, not {INPUT!r}"
            raise ApiError(words, "input_file_id")
        if not self._disk.folder.content(file.id).exists():  # its deletion came to no end
            raise not_found("file", file.id, "input_file_id")
        self._check_num_files(batch.owner)  # it makes two
        self._check_room(batch.owner, 0, "input_file_id")
        num_own = sum(other.owner == batch.owner for other in unfinished)
        if num_own >= limits.max_unfinished or len(unfinished) >= limits.max_unfinished_in_all:
            words = f"{num_own} batches of this key and {len(unfinished)} in all have not ended; the most are "
            words += f"{limits.max_unfinished} and {limits.max_unfinished_in_all}"
            raise ApiError(words, status=429, kind="rate_limit_error", code="batch_limit_exceeded")
        self._disk.store.add_batch(batch)
        self._disk.store.forget_ended(batch.owner, limits.max_batches)

    def _cancel(self, owner: str, batch_id: str) -> Batch:
        batch = _found(self._disk.store.batch(owner, batch_id), "batch", batch_id)
        if batch.status is Status.CANCELLING:
            return batch
        moved = self._disk.store.move(batch.moved(Status.CANCELLING, int(self._now_s())))
        if moved.status is not Status.CANCELLING:
            raise ApiError(f"batch {batch_id!r} cannot be cancelled: it is {moved.status.value}", status=409)
        return moved


@asynccontextmanager
async def open_batches(
    root: Path, answer: Answer, settings: BatchSettings | None = None, now_s: Clock = time.time
) -> AsyncIterator[Batches]:
    """Own a folder, go on with its batches, leave them where they stand at the end. Raises StoreError, OSError."""
    settings = settings or BatchSettings()
    with open_folder(root) as (folder, store):
        disk = Disk(folder, store)
        runner = Runner(disk, answer, settings, now_s)
        for batch in store.unfinished():
            runner.start(batch)
        try:
            yield Batches(disk, runner, settings, now_s)
        finally:
            await runner.close()
            disk.close()


def _found(thing: T | None, what: str, name: str, param: str | None = None) -> T:
    if thing is None:
        raise not_found(what, name, param)
    return thing
