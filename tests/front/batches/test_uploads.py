"""Uploads: forms that are whole, forms that are none, and their bounds."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from front.batches.routes import _pieces
from front.batches.settings import BatchSettings
from front.batches.uploads import _longest_line, _plain
from tests.front.batches.house import application, asking, openai_of, serving

SMALL = BatchSettings(max_file_bytes=1000, max_line_bytes=100, max_stored_bytes=1499, max_files=3)
FORM = {"content-type": "multipart/form-data; boundary=xx"}
LINES = b"line\n" * 20


def post(root: Path, settings: BatchSettings = SMALL, **options: Any) -> httpx2.Response:
    async def main() -> httpx2.Response:
        async with serving(root, settings=settings) as http:
            return await http.post("/v1/files", **options)

    return asyncio.run(main())


def form(*fields: tuple[str, bytes], end: bytes = b"--xx--\r\n") -> bytes:
    return b"".join(b"--xx\r\n%s\r\n\r\n%s\r\n" % (head.encode(), value) for head, value in fields) + end


FILE = ('Content-Disposition: form-data; name="file"; filename="in.jsonl"', LINES)
PURPOSE = ('Content-Disposition: form-data; name="purpose"', b"batch")


@pytest.mark.parametrize("fields", [(FILE, PURPOSE), (PURPOSE, FILE)])
def test_the_fields_come_in_any_order(tmp_path: Path, fields: tuple[tuple[str, bytes], ...]) -> None:
    response = post(tmp_path, content=form(*fields), headers=FORM)
    assert (response.status_code, response.json()["bytes"]) == (200, len(LINES))


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{}", {"content-type": "application/json"}, 415, "multipart/form-data"),
        (b"", {}, 415, "multipart/form-data"),
        (form(FILE, PURPOSE), {"content-type": "multipart/form-data"}, 415, "boundary"),
        (b"nothing", FORM, 400, "not whole"),
        (form(FILE, PURPOSE, end=b""), FORM, 400, "not whole"),
        (form(FILE, PURPOSE)[:-40], FORM, 400, "not whole"),
        (form(FILE), FORM, 400, "purpose: ''"),
        (form(FILE, (PURPOSE[0], b"vision")), FORM, 400, "purpose: 'vision' is not 'batch'"),
        (form(FILE, (PURPOSE[0], b"\xff" * 2000)), FORM, 400, "exceeds 1024 bytes"),
        (form(PURPOSE), FORM, 400, "file: missing"),
        (form((FILE[0], b""), PURPOSE), FORM, 400, "file: empty"),
        (form(FILE, FILE, PURPOSE), FORM, 400, "file: given twice"),
        (form(FILE, PURPOSE, PURPOSE), FORM, 400, "purpose: given twice"),
        (form(FILE, ('Content-Disposition: form-data; name="expires_after[seconds]"', b"1")), FORM, 400, "unknown"),
        (form((FILE[0], b"\n" * 1001), PURPOSE), FORM, 413, "exceeds 1000 bytes"),
        (form((FILE[0], b"y" * 101), PURPOSE), FORM, 400, "a line exceeds 100 bytes"),
    ],
)
def test_a_form_that_cannot_be_kept_is_refused_in_words(
    tmp_path: Path, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    response = post(tmp_path, content=body, headers=headers)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert list((tmp_path / "parts").iterdir()) == []
    assert list((tmp_path / "files").iterdir()) == []


def test_a_body_without_an_end_is_cut_off(tmp_path: Path) -> None:
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 1
            yield b"-" * 10_000

    assert post(tmp_path, content=endless(), headers=FORM).status_code in (400, 413)
    assert num_sent < 10


def test_a_client_that_sends_nothing_more_is_given_up(tmp_path: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield form(FILE, end=b"")
        await asyncio.Event().wait()

    response = post(tmp_path, BatchSettings(upload_idle_s=0.01), content=stalled(), headers=FORM)
    assert response.status_code == 408
    assert list((tmp_path / "parts").iterdir()) == []


async def in_halves(has_begun: asyncio.Event, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield a form whose second half waits for `go_on`."""
    yield form(FILE, end=b"")
    has_begun.set()
    await go_on.wait()
    yield form(PURPOSE)


@asynccontextmanager
async def half_sent(http: httpx2.AsyncClient, headers: dict[str, str] = FORM) -> AsyncIterator[None]:
    """Hold an upload open, half sent; at the end send the rest, which must succeed."""
    has_begun, go_on = asyncio.Event(), asyncio.Event()
    upload = asyncio.create_task(http.post("/v1/files", content=in_halves(has_begun, go_on), headers=headers))
    await has_begun.wait()
    yield
    go_on.set()
    assert (await upload).status_code == 200


def test_more_uploads_than_allowed_wait_their_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, settings=BatchSettings(max_uploads=1)) as http:
            async with half_sent(http):
                refused = await http.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert (await http.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)).status_code == 200

    asyncio.run(main())


def test_a_key_has_a_share_of_the_places(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text('{"key-of-mine": ["flex"], "key-of-yours": ["flex"]}')

    async def main() -> None:
        async with serving(tmp_path / "data", settings=BatchSettings(max_own_uploads=1), keys=keys) as http:
            mine, yours = ({**FORM, "authorization": f"Bearer key-of-{whose}"} for whose in ("mine", "yours"))
            async with half_sent(http, mine):
                assert (await http.post("/v1/files", content=form(FILE, PURPOSE), headers=mine)).status_code == 429
                assert (await http.post("/v1/files", content=form(FILE, PURPOSE), headers=yours)).status_code == 200

    asyncio.run(main())


def test_an_upload_that_hardly_sends_is_given_up(tmp_path: Path) -> None:
    async def trickling() -> AsyncIterator[bytes]:
        yield form(FILE, end=b"")
        for _ in range(1000):
            await asyncio.sleep(0.001)
            yield b"x"

    settings = BatchSettings(upload_idle_s=0.02, min_upload_bytes_per_s=1e9)
    response = post(tmp_path, settings, content=trickling(), headers=FORM)
    assert response.status_code == 408
    assert "fewer than 1e+09 bytes a second" in response.json()["error"]["message"]


def test_all_files_together_are_bounded_and_deleting_makes_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, settings=SMALL) as http:
            client = openai_of(http)
            files = [await client.files.create(file=("in", b"\n" * 700), purpose="batch") for _ in range(2)]
            full = await http.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)
            assert (full.status_code, full.json()["error"]["code"]) == (413, "storage_full")
            await client.files.delete(files[0].id)
            for _ in range(2):
                await client.files.create(file=("in", b"\n" * 10), purpose="batch")
            many = await http.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)
            assert (many.status_code, many.json()["error"]["message"][:25]) == (409, "files: this key has 3; mo")

    asyncio.run(main())


def test_others_on_the_machine_cannot_read_what_is_kept(tmp_path: Path) -> None:
    post(tmp_path / "data", content=form(FILE, PURPOSE), headers=FORM)
    assert stat.S_IMODE(os.stat(tmp_path / "data").st_mode) == 0o700


def test_a_file_of_ours_is_never_shown_as_a_page(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as http:
            page = b"<script>alert(1)</script>"
            file = await openai_of(http).files.create(file=('a"\r\nX-Evil: 1.html', page), purpose="batch")
            response = await http.get(f"/v1/files/{file.id}/content")
            assert response.content == page
            assert response.headers["content-type"] == "application/octet-stream"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
            assert "x-evil" not in response.headers

    asyncio.run(main())


def test_a_download_holds_no_descriptor_between_two_pieces(tmp_path: Path) -> None:
    path, data = tmp_path / "file", bytes(range(256)) * 4096
    path.write_bytes(data)
    me, found = psutil.Process(), b""
    for piece in _pieces(path, len(data)):
        assert str(path) not in [file.path for file in me.open_files()]
        found += piece
    assert found == data
    assert [*_pieces(path, 0)] == []


@given(st.lists(st.binary(max_size=9).map(lambda data: data.replace(b"\r", b"\n"))))
def test_the_longest_line_is_found_across_pieces(pieces: list[bytes]) -> None:
    longest = begun = 0
    for piece in pieces:
        found, begun = _longest_line(piece, begun)
        longest = max(longest, found)
    assert longest == max(map(len, b"".join(pieces).split(b"\n")))


@given(st.text())
def test_a_filename_is_made_plain(name: str) -> None:
    plain = _plain(name)
    assert 0 < len(plain) <= 255
    assert plain.isprintable()
    assert not set(plain) & set("/\\")


def test_without_keys_an_address_has_a_share_of_the_places(tmp_path: Path) -> None:
    async def main() -> None:
        settings = BatchSettings(max_own_uploads=1)
        async with (
            application(tmp_path, settings=settings) as app,
            asking(app) as one,
            asking(app, "192.0.2.7") as two,
            half_sent(one),
        ):
            assert (await one.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)).status_code == 429
            assert (await two.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)).status_code == 200

    asyncio.run(main())


def test_a_client_that_holds_all_places_makes_room_for_another(tmp_path: Path) -> None:
    async def main() -> None:
        settings = BatchSettings(max_uploads=2, max_own_uploads=2)
        async with application(tmp_path, settings=settings) as app, asking(app) as one, asking(app, "192.0.2.7") as two:
            begun, go_on = [asyncio.Event(), asyncio.Event()], asyncio.Event()
            held = []
            for has_begun in begun:
                content = in_halves(has_begun, go_on)
                held.append(asyncio.create_task(one.post("/v1/files", content=content, headers=FORM)))
                await has_begun.wait()
            assert (await two.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)).status_code == 200
            displaced = await held[0]
            assert (displaced.status_code, displaced.headers["retry-after"]) == (429, "1")
            assert "another client has fewer" in displaced.json()["error"]["message"]
            go_on.set()
            assert (await held[1]).status_code == 200
            assert (await one.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)).status_code == 200

    asyncio.run(main())
    assert list((tmp_path / "parts").iterdir()) == []


def test_clients_with_as_many_places_keep_them(tmp_path: Path) -> None:
    async def main() -> None:
        settings = BatchSettings(max_uploads=1)
        async with (
            application(tmp_path, settings=settings) as app,
            asking(app) as one,
            asking(app, "192.0.2.7") as two,
            half_sent(one),
        ):
            assert (await two.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)).status_code == 429

    asyncio.run(main())
