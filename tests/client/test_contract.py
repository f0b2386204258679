"""What a client may rely on over every transport: what the fake passes here, the real server passes too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from client import AsyncClient, Client, Generation, Prompt
from client.errors import CancelledError, ClientError, InvalidRequestError, TooLargeError
from client.generation import PriorityClass
from tests.client.conftest import Endpoint, on_a_real_model
from tests.triton.servers import PATIENCE_S

PROMPT = "the quick brown fox jumps over the lazy dog while seven wizards mix very bright potions"


def test_stream_ends_with_the_reason_and_the_metrics(client: Client) -> None:
    *others, last = client.stream(PROMPT, max_tokens=8, ignore_eos=True)
    assert [chunk.finish_reason for chunk in others] == [None] * len(others)
    assert last.finish_reason == "length"
    assert last.metrics is not None
    assert last.metrics.num_output_tokens == 8


def test_every_token_is_streamed_once(client: Client) -> None:
    chunks = list(client.stream(PROMPT, max_tokens=8, ignore_eos=True))
    assert sum(len(chunk.token_ids) for chunk in chunks) == 8
    assert len(chunks) > 1


@on_a_real_model
def test_generate_returns_what_stream_streams(client: Client) -> None:
    streamed = client.stream(PROMPT, max_tokens=8, temperature=0.0).join()
    whole = client.generate(PROMPT, max_tokens=8, temperature=0.0)
    assert (whole.text, whole.token_ids) == (streamed.text, streamed.token_ids)


@pytest.mark.parametrize(
    "prompt", [PROMPT, [101, 102, 103], [{"role": "user", "content": PROMPT}]], ids=["text", "token_ids", "messages"]
)
def test_every_kind_of_prompt_is_answered(client: Client, prompt: Prompt) -> None:
    assert len(client.generate(prompt, max_tokens=4, ignore_eos=True).token_ids) == 4


@pytest.mark.parametrize("priority_class", ["rt", "be"])
def test_both_classes_are_served(client: Client, priority_class: PriorityClass) -> None:
    answer = client.generate(PROMPT, priority_class=priority_class, max_tokens=4, ignore_eos=True)
    assert answer.finish_reason == "length"


@on_a_real_model
def test_log_probs_come_one_per_token_when_asked_for(client: Client) -> None:
    answer = client.generate(PROMPT, max_tokens=4, ignore_eos=True, log_probs=True)
    assert answer.log_probs is not None
    assert len(answer.log_probs) == len(answer.token_ids) == 4
    assert max(answer.log_probs) <= 0.0
    assert client.generate(PROMPT, max_tokens=4).log_probs is None


@on_a_real_model
def test_output_ends_before_a_stop_word(client: Client) -> None:
    word = client.generate(PROMPT, max_tokens=16, ignore_eos=True).text.split()[3]
    answer = client.generate(PROMPT, max_tokens=16, ignore_eos=True, stop=[word])
    assert answer.finish_reason == "stop"
    assert word not in answer.text


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ([], {}),
        (PROMPT, {"priority_class": "urgent"}),
        (PROMPT, {"max_tokens": 0}),
        (PROMPT, {"max_tokens": -3}),
    ],
)
def test_what_can_never_be_served_is_refused(client: Client, prompt: Prompt, options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        client.generate(prompt, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_too_long_an_output_is_refused_as_too_large(client: Client) -> None:
    with pytest.raises(TooLargeError):
        client.generate(PROMPT, max_tokens=2_000_000)


def test_an_answer_that_takes_too_long_is_cancelled(client: Client) -> None:
    with pytest.raises(CancelledError):
        client.generate(PROMPT, max_tokens=1_000, ignore_eos=True, timeout_s=0.05)


@pytest.mark.parametrize("leave", ["stream", "generate"])
def test_what_is_cancelled_leaves_the_server(endpoint: Endpoint, client: Client, leave: str) -> None:
    if leave == "stream":
        with client.stream(PROMPT, max_tokens=4_000, ignore_eos=True) as stream:
            next(stream)
    else:
        with pytest.raises(CancelledError):
            client.generate(PROMPT, max_tokens=4_000, ignore_eos=True, timeout_s=0.1)
    endpoint.wait_until_idle(client)


def test_the_client_serves_on_after_an_error_and_a_cancellation(client: Client) -> None:
    with client.stream(PROMPT, max_tokens=500, ignore_eos=True) as stream:
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(InvalidRequestError):
        client.generate("")
    assert client.generate(PROMPT, max_tokens=2, ignore_eos=True).finish_reason == "length"


def test_inspect_shows_both_classes_and_the_whole_pool(client: Client) -> None:
    snapshot = client.inspect()
    assert set(snapshot.requests_by_class) == {"rt", "be"}
    assert len(snapshot.kv.tail_fill) == snapshot.kv.num_blocks > 0


def test_counts_have_the_pool_and_no_request(client: Client) -> None:
    with client.stream(PROMPT, max_tokens=500, ignore_eos=True) as stream:
        next(stream)
        whole, counts = client.inspect(), client.inspect(counts_only=True)
    assert whole.requests
    assert counts.requests == counts.preemptions == counts.facts == []
    assert counts.kv.num_blocks == whole.kv.num_blocks


def test_the_async_client_inspects_too(endpoint: Endpoint) -> None:
    async def run() -> str:
        async with AsyncClient(endpoint.async_transport()) as client:
            return (await client.inspect(timeout_s=PATIENCE_S)).policy

    assert asyncio.run(run()) in ("bros", "fake")


def test_async_client_runs_many_streams_at_once(endpoint: Endpoint) -> None:
    async def run() -> list[Generation]:
        async with AsyncClient(endpoint.async_transport()) as client:
            calls = [client.generate(PROMPT, max_tokens=4, ignore_eos=True, request_id=f"many-{i}") for i in range(32)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(run())
    assert [answer.request_id for answer in answers] == [f"many-{i}" for i in range(32)]
    assert {len(answer.token_ids) for answer in answers} == {4}


@on_a_real_model
def test_async_stream_yields_what_the_sync_one_does(endpoint: Endpoint, client: Client) -> None:
    async def run() -> Sequence[str]:
        async with AsyncClient(endpoint.async_transport()) as async_client:
            return [chunk.text async for chunk in async_client.stream(PROMPT, max_tokens=8, temperature=0.0)]

    assert "".join(asyncio.run(run())) == client.generate(PROMPT, max_tokens=8, temperature=0.0).text


def test_cancelling_a_task_frees_the_server(endpoint: Endpoint, client: Client) -> None:
    async def run() -> None:
        async_client = AsyncClient(endpoint.async_transport())
        first_chunk = asyncio.Event()

        async def read() -> None:
            async for _ in async_client.stream(PROMPT, max_tokens=4_000, ignore_eos=True):
                first_chunk.set()

        tasks = [asyncio.create_task(read()) for _ in range(4)]
        await first_chunk.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await async_client.close()

    asyncio.run(run())
    endpoint.wait_until_idle(client)


def test_async_errors_are_typed_too(endpoint: Endpoint) -> None:
    async def run() -> ClientError:
        async with AsyncClient(endpoint.async_transport()) as client:
            with pytest.raises(ClientError) as caught:
                await client.generate("")
            return caught.value

    assert isinstance(asyncio.run(run()), InvalidRequestError)
