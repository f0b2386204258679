"""Takes files in: multipart/form-data, straight to the disk, bounded in size, time and number."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import multipart
from fastapi import Request

from client.openai.errors import ApiError, retry_after
from front.batches.disk import disk_full, is_full
from front.batches.folder import Folder
from front.batches.objects import INPUT
from front.batches.settings import BatchSettings
from front.http import require_plain

_MAX_FIELD_BYTES = 1024  # of a field that is no file
_MAX_FIELDS = 8
_MAX_OVERHEAD_BYTES = 64 * 1024  # of the form around the file
_MAX_FILENAME = 255
_BUFFER_BYTES = 1024 * 1024  # written at once, away from the event loop
_FILE = "file"
_FIELDS = ("purpose",)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that lies on the disk as a part."""

    part: Path
    filename: str
    purpose: str
    num_bytes: int


class Uploads:
    """Takes in a few files at once."""

    def __init__(self, folder: Folder, settings: BatchSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._open: dict[str, list[asyncio.Timeout]] = {}  # by client, the oldest first

    @asynccontextmanager
    async def take(self, client: str, request: Request) -> AsyncIterator[Upload]:
        """Read a request's form; its part is deleted at the end unless somebody has moved it. Raises ApiError."""
        self._make_room(client)
        require_plain(request)
        part = self._folder.parts / uuid4().hex
        try:
            with self._counted(client) as end:
                async with end:
                    upload = await self._read(request, part)
            yield upload
        except OSError as error:
            if not is_full(error):
                raise
            raise disk_full() from error
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _counted(self, client: str) -> Iterator[asyncio.Timeout]:
        """Count an upload as open; give its timeout. Raises ApiError when it passes, or for another client."""
        own = self._open.setdefault(client, [])
        own.append(end := asyncio.timeout(self._settings.upload_s))
        try:
            yield end
        except TimeoutError as error:
            if end in own:
                raise ApiError(f"file: no whole file within {self._settings.upload_s:g} s", status=408) from error
            words = f"file: {self._settings.max_uploads} are being uploaded, the most at once; another client has fewer"
            raise _refused(words) from error
        finally:
            if end in own:
                own.remove(end)
            if not own and self._open.get(client) is own:
                del self._open[client]

    def _make_room(self, client: str) -> None:
        """End the oldest upload of the client with most, if no more may be open. Raises ApiError."""
        num_own, num_all = len(self._open.get(client, [])), sum(map(len, self._open.values()))
        most_own, most = self._settings.max_own_uploads, self._settings.max_uploads
        largest = max(self._open.values(), key=len, default=[])
        if num_own >= most_own or (num_all >= most and len(largest) <= num_own + 1):
            words = f"{num_own} files of this client and {num_all} in all are being uploaded; the most are "
            raise _refused(words + f"{most_own} and {most}")
        if num_all >= most:
            largest.pop(0).reschedule(asyncio.get_running_loop().time())

    async def _read(self, request: Request, part: Path) -> Upload:
        parser = multipart.PushMultipartParser(_boundary(request), max_segment_count=_MAX_FIELDS)
        with part.open("xb", buffering=0) as file:
            form = _Form(file, self._settings)
            try:
                async for piece in self._pieces(request):
                    for event in parser.parse(piece):
                        form.add(event)
                    await form.write(_BUFFER_BYTES)
                parser.close()
            except (multipart.MultipartError, UnicodeDecodeError) as error:
                raise ApiError(f"the body is not whole multipart/form-data: {error}") from error
            await form.write(1)
            await asyncio.to_thread(os.fsync, file.fileno())
        return form.upload(part)

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the pieces of a body, which has a bound: the parser keeps the bytes that it cannot assign yet."""
        pieces, num_bytes, began_s = aiter(request.stream()), 0, time.monotonic()
        while True:
            async with asyncio.timeout(self._settings.upload_idle_s):
                piece = await anext(pieces, None)
            if piece is None:
                return
            num_bytes += len(piece)
            if num_bytes > self._settings.max_file_bytes + _MAX_OVERHEAD_BYTES:
                raise too_large(self._settings.max_file_bytes)
            self._require_pace(num_bytes, time.monotonic() - began_s)
            if piece:
                yield piece

    def _require_pace(self, num_bytes: int, took_s: float) -> None:
        """Raise ApiError for an upload that takes a share and hardly sends."""
        least = self._settings.min_upload_bytes_per_s
        if took_s > self._settings.upload_idle_s and num_bytes < least * took_s:
            words = f"file: {num_bytes} bytes in {took_s:.0f} s are fewer than {least:g} bytes a second"
            raise ApiError(words, status=408)


class _Form:
    """What has come of a form: its fields here, its file on the disk."""

    def __init__(self, file: BinaryIO, settings: BatchSettings) -> None:
        self._file = file
        self._settings = settings
        self._segment: multipart.MultipartSegment | None = None
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._buffer = bytearray()
        self._line_bytes = 0  # of the line that has begun
        self._num_bytes = 0

    def add(self, event: multipart.MultipartSegment | bytes | bytearray | None) -> None:
        """Take what the parser says: a segment begins, has a piece, or ends. Raises ApiError."""
        if event is None:
            self._segment = None
        elif isinstance(event, multipart.MultipartSegment):
            self._begin(event)
        elif self._segment is not None and self._segment.name == _FILE:
            self._add_content(bytes(event))
        elif self._segment is not None:
            self._add_value(str(self._segment.name), bytes(event))

    async def write(self, min_bytes: int) -> None:
        """Write what has come of the file if it is `min_bytes` or more."""
        if len(self._buffer) < min_bytes:
            return
        ready, self._buffer = self._buffer, bytearray()
        await asyncio.to_thread(_write_whole, self._file, ready)

    def upload(self, part: Path) -> Upload:
        """Return what the whole form holds. Raises ApiError."""
        purpose = self._fields.get("purpose", bytearray()).decode("utf-8", "replace")
        if self._filename is None:
            raise ApiError("file: missing; send a form with a file and the field purpose", "file")
        if purpose != INPUT:
            raise ApiError(f"purpose: {purpose[:60]!r} is not {INPUT!r}, which is all that is served", "purpose")
        if self._num_bytes == 0:
            raise ApiError("file: empty", "file")
        return Upload(part, self._filename, purpose, self._num_bytes)

    def _begin(self, segment: multipart.MultipartSegment) -> None:
        name = segment.name or ""
        if name in self._fields or (name == _FILE and self._filename is not None):
            raise ApiError(f"{name}: given twice", name)
        if name == _FILE:
            self._filename = _plain(segment.filename or _FILE)
        elif name in _FIELDS:
            self._fields[name] = bytearray()
        else:
            raise ApiError(f"unknown field {name[:100]!r}", name[:100], code="unknown_parameter")
        self._segment = segment

    def _add_value(self, name: str, piece: bytes) -> None:
        self._fields[name] += piece
        if len(self._fields[name]) > _MAX_FIELD_BYTES:
            raise ApiError(f"{name}: exceeds {_MAX_FIELD_BYTES} bytes", name)

    def _add_content(self, piece: bytes) -> None:
        self._num_bytes += len(piece)
        if self._num_bytes > self._settings.max_file_bytes:
            raise too_large(self._settings.max_file_bytes)
        longest, self._line_bytes = _longest_line(piece, self._line_bytes)
        if longest > self._settings.max_line_bytes:
            raise ApiError(f"file: a line exceeds {self._settings.max_line_bytes} bytes", "file", code="line_too_long")
        self._buffer += piece


def _refused(words: str) -> ApiError:
    return ApiError(words, status=429, kind="rate_limit_error", headers=retry_after(1.0))


def too_large(max_bytes: int) -> ApiError:
    """Return the refusal of a file that is too large."""
    return ApiError(f"file: exceeds {max_bytes} bytes", "file", status=413, code="file_too_large")


def _boundary(request: Request) -> str:
    media_type, options = multipart.parse_options_header(request.headers.get("content-type", ""))
    if media_type != "multipart/form-data" or not options.get("boundary"):
        raise ApiError(f"content-type: {media_type[:60]!r} is not multipart/form-data with a boundary", status=415)
    return str(options["boundary"])


def _longest_line(piece: bytes, num_begun: int) -> tuple[int, int]:
    """Return the longest line that `piece`, which goes on with one of `num_begun` bytes, has, and how long its last
    one is."""
    lines = piece.split(b"\n")
    lengths = [num_begun + len(lines[0]), *map(len, lines[1:])]
    return max(lengths), lengths[-1]


def _plain(filename: str) -> str:
    """Return a name that may stand in a header: its last part, without control characters."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(char if char.isprintable() else "_" for char in name)[:_MAX_FILENAME] or _FILE


def _write_whole(file: BinaryIO, data: bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
