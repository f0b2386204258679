"""OpenAI's own client against the whole stack: front door, Triton, stub and engine, on the simulated executor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from tests.triton.servers import Server, wait_until

pytestmark = pytest.mark.triton
QUESTION: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
LONG = 4000  # tokens: at 8 ms each, longer than any of these tests waits


@pytest.fixture
def client(sim: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=sim.openai_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("tier", "priority_class"), [("priority", "rt"), ("flex", "be")])
def test_a_chat_is_served_in_the_class_of_its_tier(
    sim: Server, client: openai.OpenAI, tier: str, priority_class: str
) -> None:
    series = f'bros_requests_total{{class="{priority_class}",outcome="length"}}'
    num_before = sim.metric(series)
    answer = client.chat.completions.create(model="bros", messages=QUESTION, max_tokens=5, service_tier=tier)  # type: ignore[call-overload]  # a str
    assert (answer.service_tier, answer.choices[0].finish_reason) == (tier, "length")
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 5
    # A canary of the launcher may be among the real-time ones.
    wait_until(lambda: sim.metric(series) >= num_before + 1, "a request of that class")


def test_a_stream_says_the_same_as_its_parts_and_ends_with_the_usage(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="bros", messages=QUESTION, max_tokens=5, stream=True, stream_options=options
        )
    )  # type: ignore[call-overload]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]).split()
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)


def test_the_helper_for_streams_puts_the_answer_together(client: openai.OpenAI) -> None:
    stream = client.chat.completions.stream(model="bros", messages=QUESTION, max_tokens=5)
    ended = pytest.raises(openai.LengthFinishReasonError)  # its word for max_tokens reached
    with stream as events, ended as caught:
        events.get_final_completion()
    assert caught.value.completion.choices[0].message.content


def test_requests_of_one_event_loop_are_served_at_once(sim: Server) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=sim.openai_url, api_key="none") as client:
            asked = [client.completions.create(model="bros", prompt="The sea", max_tokens=3, seed=k) for k in range(8)]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    assert all(asyncio.run(main()))


def test_fields_of_our_own_come_as_extra_body_and_extra_headers(client: openai.OpenAI) -> None:
    body = {"ttft_slo_ms": 500, "top_k": 4, "min_tokens": 2, "ignore_eos": True}
    headers = {"x-priority-class": "rt", "x-llm-d-slo-tpot-ms": "80"}
    answer = client.chat.completions.create(
        model="bros", messages=QUESTION, max_tokens=3, extra_body=body, extra_headers=headers
    )
    assert answer.service_tier == "priority"


def test_errors_are_those_of_the_library(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="bros", messages=QUESTION, logit_bias={"5": 1})
    assert refused.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="bros", prompt="a", max_tokens=100_000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"bros", "bros_rt", "bros_be"}


def test_who_leaves_a_stream_leaves_nothing_in_the_engine(sim: Server, client: openai.OpenAI) -> None:
    for _ in range(3):
        with client.completions.create(model="bros", prompt="a b", max_tokens=LONG, stream=True, n=2) as stream:
            next(iter(stream))
            assert sim.num_requests() >= 1
    wait_until(lambda: sim.num_requests() == 0, "the end of what nobody reads")


def test_who_leaves_before_the_answer_leaves_nothing_in_the_engine(sim: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model="bros", prompt="a b", max_tokens=LONG, timeout=0.5)
    wait_until(lambda: sim.num_requests() == 0, "the end of what nobody waits for")
