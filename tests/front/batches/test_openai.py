"""/v1/files and /v1/batches as openai-python uses them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import openai
import pytest

from client import FakeServer
from client.batch.lines import COMPLETIONS
from front.batches import routes
from front.batches.objects import StoredFile
from front.batches.service import open_batches
from front.batches.settings import WINDOW_S, BatchSettings
from front.batches.store import Cut
from tests.front.batches.house import begin, chat_line, ended, openai_of, results, serving, to_bytes


def test_a_batch_goes_from_upload_to_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as http:
            client = openai_of(http)
            begun = await begin(client, [chat_line("a"), chat_line("b")], metadata={"run": "7"})
            assert (begun.object, begun.status, begun.completion_window) == ("batch", "validating", "24h")
            assert begun.expires_at == begun.created_at + WINDOW_S
            batch = await ended(client, begun)
            assert batch.status == "completed"
            assert batch.metadata == {"run": "7"}
            assert batch.request_counts is not None
            assert batch.request_counts.to_dict() == {"total": 2, "completed": 2, "failed": 0}
            assert (batch.errors, batch.error_file_id) == (None, None)
            assert batch.in_progress_at is not None
            assert batch.completed_at is not None
            answers = {line["custom_id"]: line["response"] for line in await results(client, batch.output_file_id)}
            assert set(answers) == {"a", "b"}
            assert answers["a"]["status_code"] == 200
            assert answers["a"]["body"]["choices"][0]["message"]["content"] == "say a say "
            assert answers["a"]["body"]["service_tier"] == "flex"

    asyncio.run(main())


def test_lines_are_best_effort_and_due_with_their_batch(tmp_path: Path) -> None:
    server = FakeServer()

    async def main() -> None:
        async with serving(tmp_path, server) as http:
            client = openai_of(http)
            lines = [chat_line("a", service_tier="auto"), chat_line("b", deadline_ms=5000)]
            await ended(client, await begin(client, lines))

    asyncio.run(main())
    first, second = (call.inputs for call in server.calls)
    assert (first["priority_class"], second["priority_class"]) == ("be", "be")
    assert WINDOW_S - 60 < float(str(first["deadline_ms"])) / 1e3 <= WINDOW_S
    assert second["deadline_ms"] == 5000.0


def test_what_an_endpoint_refuses_goes_to_the_error_file(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as http:
            client = openai_of(http)
            batch = await ended(client, await begin(client, [chat_line("a"), chat_line("b", temperature=9)]))
            assert batch.request_counts is not None
            assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
            (line,) = await results(client, batch.error_file_id)
            assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("b", None, 400)
            assert line["response"]["body"]["error"]["param"] == "temperature"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([chat_line("a"), "{nonsense"], "invalid_json_line", 2),
        ([chat_line("a"), '{"custom_id": "b"}'], "invalid_request", 2),
        ([chat_line("a"), chat_line("b"), chat_line("a")], "duplicate_custom_id", 3),
        ([chat_line("a").replace("POST", "GET")], "invalid_request", 1),
        ([chat_line("a").replace("/v1/chat/completions", COMPLETIONS)], "mismatched_endpoint", 1),
        ([chat_line("a").replace("/v1/chat/completions", "/v1/embeddings")], "invalid_request", 1),
        (["", " "], "empty_file", None),
        ([chat_line(f"r{index}") for index in range(9)], "too_many_tasks", None),
    ],
)
def test_an_input_that_cannot_be_run_fails_before_it_begins(
    tmp_path: Path, lines: list[str], code: str, line: int | None
) -> None:
    server = FakeServer()

    async def main() -> None:
        async with serving(tmp_path, server, BatchSettings(max_lines=8)) as http:
            client = openai_of(http)
            batch = await ended(client, await begin(client, lines))
            assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
            assert batch.errors is not None
            assert batch.errors.data is not None
            assert [(error.code, error.line) for error in batch.errors.data] == [(code, line)]

    asyncio.run(main())
    assert server.calls == []


def test_a_long_list_comes_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_MAX_LISTED", 2)

    async def main() -> None:
        async with serving(tmp_path) as http:
            client = openai_of(http)
            for n in (1, 2, 3):
                await client.files.create(file=(f"{n}.jsonl", b"x" * n), purpose="batch")
            page = (await http.get("/v1/files")).json()
            assert ([file["bytes"] for file in page["data"]], page["has_more"]) == ([3, 2], True)
            assert [file.bytes async for file in client.files.list()] == [3, 2, 1]

    asyncio.run(main())


def test_lists_of_others_are_not_behind_all_of_one_owner(tmp_path: Path) -> None:
    made: list[str] = []

    def slow_files(owner: str, *_: object) -> list[StoredFile]:
        time.sleep(0.005)
        made.append(owner)
        return []

    async def never(*_: object) -> dict[str, object]:
        raise AssertionError("no line is sent")

    async def main() -> None:
        async with open_batches(tmp_path, never, BatchSettings()) as batches:
            batches._disk.store.files = slow_files  # type: ignore[method-assign]
            many = [asyncio.create_task(batches.files("many", Cut(1), None)) for _ in range(20)]
            await asyncio.sleep(0)
            await batches.files("one", Cut(1), None)
            assert made.index("one") <= 2
            await asyncio.gather(*many)
            assert made.count("many") == 20

    asyncio.run(main())


def test_files_are_listed_read_and_deleted(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as http:
            client = openai_of(http)
            files = [await client.files.create(file=(f"{n}.jsonl", b"x" * n), purpose="batch") for n in (1, 2, 3)]
            assert (files[2].object, files[2].bytes, files[2].filename) == ("file", 3, "3.jsonl")
            listed = [file.bytes async for file in client.files.list(limit=1)]
            assert listed == [3, 2, 1]
            assert [file.bytes async for file in client.files.list(order="asc", after=files[0].id)] == [2, 3]
            assert [file async for file in client.files.list(purpose="vision")] == []
            assert (await client.files.retrieve(files[1].id)) == files[1]
            assert (await client.files.content(files[1].id)).content == b"xx"
            assert (await client.files.delete(files[1].id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.content(files[1].id)
            assert [file.bytes async for file in client.files.list()] == [3, 1]

    asyncio.run(main())


def test_batches_are_listed_page_by_page(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as http:
            client = openai_of(http)
            begun = [await begin(client, [chat_line("a")]) for _ in range(5)]
            assert [batch.id async for batch in client.batches.list(limit=2)] == [batch.id for batch in begun[::-1]]

    asyncio.run(main())


def test_a_cancelled_batch_keeps_what_it_has(tmp_path: Path) -> None:
    server = FakeServer()

    async def main() -> None:
        async with serving(tmp_path, server, BatchSettings(max_open_requests=1)) as http:
            client = openai_of(http)
            batch = await begin(client, [chat_line("a"), chat_line("b", max_tokens=8000)])
            while batch.request_counts is None or batch.request_counts.completed < 1:
                server.token_s = 0.01
                batch = await client.batches.retrieve(batch.id)
            cancelled = await client.batches.cancel(batch.id)
            assert cancelled.status == "cancelling"
            batch = await ended(client, cancelled)
            assert batch.status == "cancelled"
            assert batch.cancelled_at is not None
            assert server.open_ids == set()
            assert [line["custom_id"] for line in await results(client, batch.output_file_id)] == ["a"]
            with pytest.raises(openai.ConflictError, match="it is cancelled"):
                await client.batches.cancel(batch.id)

    asyncio.run(main())


def test_an_input_in_use_is_not_deleted(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, FakeServer(token_s=0.01)) as http:
            client = openai_of(http)
            batch = await begin(client, [chat_line("a", max_tokens=8000)])
            with pytest.raises(openai.ConflictError, match="has not ended"):
                await client.files.delete(batch.input_file_id)
            await ended(client, await client.batches.cancel(batch.id))
            assert (await client.files.delete(batch.input_file_id)).deleted

    asyncio.run(main())


def test_an_overloaded_engine_slows_a_batch_and_loses_nothing(tmp_path: Path) -> None:
    server = FakeServer(token_s=0.0001, max_concurrent=2)

    async def main() -> None:
        async with serving(tmp_path, server) as http:
            client = openai_of(http)
            batch = await ended(client, await begin(client, [chat_line(f"r{n}") for n in range(20)]))
            assert (batch.status, batch.error_file_id) == ("completed", None)
            assert len(await results(client, batch.output_file_id)) == 20

    asyncio.run(main())
    assert len(server.calls) > 20


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, "output_expires_after"),
    ],
)
def test_a_batch_that_cannot_be_begun_is_refused_by_field(tmp_path: Path, wrong: dict[str, object], param: str) -> None:
    async def main() -> None:
        async with serving(tmp_path) as http:
            file = await openai_of(http).files.create(file=("in", to_bytes([chat_line("a")])), purpose="batch")
            right = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            response = await http.post("/v1/batches", json={**right, **wrong})
            assert response.status_code in (400, 404)
            assert response.json()["error"]["param"] == param

    asyncio.run(main())


def test_keys_see_their_own_and_need_best_effort(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"key-one-1": ["flex"], "key-two-2": ["flex"], "key-rt-33": ["priority"]}')

    async def main() -> None:
        async with serving(tmp_path / "data", keys=keys) as http:
            one, two, rt = (openai_of(http, key) for key in ("key-one-1", "key-two-2", "key-rt-33"))
            batch = await begin(one, [chat_line("a")])
            for ask in (two.files.retrieve(batch.input_file_id), two.batches.retrieve(batch.id)):
                with pytest.raises(openai.NotFoundError):
                    await ask
            assert [each async for each in two.batches.list()] == []
            with pytest.raises(openai.PermissionDeniedError):
                await rt.files.create(file=("in", b"x"), purpose="batch")
            with pytest.raises(openai.AuthenticationError):
                await openai_of(http, "key-nobody").files.retrieve(batch.input_file_id)

    asyncio.run(main())


def test_too_many_unfinished_batches_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, FakeServer(token_s=1.0), BatchSettings(max_unfinished=2)) as http:
            client = openai_of(http)
            for _ in range(2):
                await begin(client, [chat_line("a")])
            with pytest.raises(openai.RateLimitError, match="the most are 2"):
                await begin(client, [chat_line("a")])

    asyncio.run(main())
