"""Cancellation, retries, broken streams and text that cannot be sent, seen from the server's side."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest

from client import AsyncClient, AsyncFakeTransport, Client, FakeServer, FakeTransport, Retry
from client.errors import ExecutionError, InvalidRequestError, OverloadedError, UnavailableError
from client.generation import Call, Options, Outputs, Prompt

PROMPT = "one two three four"


class RefusingTransport:
    """Refuses the first `num_refusals` calls as overloaded, then answers."""

    def __init__(self, num_refusals: int) -> None:
        self.num_refusals = num_refusals
        self._fake = FakeTransport()

    def stream(self, call: Call) -> Generator[Outputs, None, None]:
        if self.num_refusals > 0:
            self.num_refusals -= 1
            raise OverloadedError("OVERLOADED: be queue full; retry_after_ms=1", retry_after_s=0.001)
        yield from self._fake.stream(call)

    def close(self) -> None:
        pass


class CutTransport:
    """Answers without a final response."""

    def stream(self, call: Call) -> Generator[Outputs, None, None]:
        yield {"text_output": [call.request_id]}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "prompt", "options"),
    [
        ("text_input", "a\ud83d", {}),
        ("messages", [{"role": "user", "content": "\ud83d"}], {}),
        ("stop_words", "a", {"stop": ["b", "\ud83d"]}),
        ("tools", "a", {"tools": [{"name": "\ud83d"}]}),
        ("request_id", "a", {"request_id": "\ud83d"}),
    ],
)
def test_half_an_emoji_is_refused_by_the_name_of_its_field(name: str, prompt: Prompt, options: Options) -> None:
    with Client("fake://") as client, pytest.raises(InvalidRequestError, match=f"^{name}: no UTF-8 text"):
        client.generate(prompt, **options)


def test_leaving_the_with_block_cancels() -> None:
    server = FakeServer()
    with Client(FakeTransport(server)) as client, client.stream(PROMPT, max_tokens=100) as stream:
        next(stream)
        assert server.open_ids == {stream.request_id}
    assert server.cancelled_ids == [stream.request_id]
    assert not server.open_ids


def test_breaking_out_of_the_loop_cancels() -> None:
    server = FakeServer()
    for _ in Client(FakeTransport(server)).stream(PROMPT, max_tokens=100):
        break
    assert len(server.cancelled_ids) == 1


def test_a_finished_stream_is_not_cancelled() -> None:
    server = FakeServer()
    with Client(FakeTransport(server)).stream(PROMPT, max_tokens=3) as stream:
        list(stream)
    assert not server.cancelled_ids


def test_cancelling_the_task_cancels_the_request() -> None:
    server = FakeServer(token_s=0.001)

    async def run() -> None:
        client = AsyncClient(AsyncFakeTransport(server))
        first_chunk = asyncio.Event()

        async def read() -> None:
            async for _ in client.stream(PROMPT, max_tokens=4_000):
                first_chunk.set()

        task = asyncio.create_task(read())
        await first_chunk.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert len(server.cancelled_ids) == 1
    assert not server.open_ids


def test_overload_is_raised_with_the_servers_advice() -> None:
    client = Client(FakeTransport(FakeServer(max_concurrent=0)))
    with pytest.raises(OverloadedError) as caught:
        client.generate(PROMPT)
    assert caught.value.retry_after_s == 0.001


def test_retry_sends_again_until_accepted() -> None:
    transport = RefusingTransport(num_refusals=2)
    assert Client(transport, retry=Retry(max_attempts=3)).generate(PROMPT).finish_reason == "length"
    assert transport.num_refusals == 0


def test_retry_gives_up_after_its_attempts() -> None:
    transport = RefusingTransport(num_refusals=5)
    with pytest.raises(OverloadedError):
        Client(transport, retry=Retry(max_attempts=3)).generate(PROMPT)
    assert transport.num_refusals == 2


def test_async_retry_sends_again_until_accepted() -> None:
    async def run() -> int:
        server = FakeServer(token_s=0.0005, max_concurrent=1)
        client = AsyncClient(AsyncFakeTransport(server), retry=Retry(max_attempts=50, max_wait_s=0.01))
        await asyncio.gather(*(client.generate(PROMPT, max_tokens=2) for _ in range(4)))
        return len(server.calls)

    assert asyncio.run(run()) > 4


def test_waits_grow_and_stay_bounded() -> None:
    retry = Retry(max_attempts=10, max_wait_s=1.0)
    error = OverloadedError("", retry_after_s=0.2)
    longest = [retry.wait_s(error, attempt, spread=0.0) for attempt in range(1, 11)]
    assert longest[:-1] == pytest.approx([0.3, 0.6, *[1.0] * 7])
    assert longest[-1] is None
    shortest = [retry.wait_s(error, attempt, spread=1.0) for attempt in range(1, 10)]
    assert shortest == pytest.approx([0.2, 0.4, *[2 / 3] * 7])


def test_a_stream_without_a_final_response_is_an_error() -> None:
    with pytest.raises(ExecutionError, match="without a final response"):
        Client(CutTransport()).generate(PROMPT)


def test_a_server_that_is_down_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        Client(FakeTransport(FakeServer(is_down=True))).generate(PROMPT)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_a_port_without_a_server_is_unavailable(url: str) -> None:
    with Client(url) as client, pytest.raises(UnavailableError):
        client.generate(PROMPT)

    async def run() -> None:
        async with AsyncClient(url) as client:
            await client.generate(PROMPT)

    with pytest.raises(UnavailableError):
        asyncio.run(run())


def test_url_must_name_a_known_protocol() -> None:
    with pytest.raises(ValueError, match="ftp://x"):
        Client("ftp://x")
