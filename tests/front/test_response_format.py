"""Structured output: how a chat asks for it, and what real clients get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.front.door import Door, error_of
from tests.triton.servers import Server

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", **fields}}


@pytest.mark.parametrize(
    ("response_format", "sent"),
    [
        (json_schema(schema=SCHEMA, strict=True, description="whatever"), SCHEMA),
        (json_schema(schema=None), {"type": "object"}),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "text"}, None),
        (None, None),
    ],
)
def test_a_format_reaches_the_engine_as_a_schema(response_format: Any, sent: Any) -> None:
    door = Door()
    assert door.chat(response_format=response_format).status_code == 200
    assert json.loads(door.inputs.get("json_schema", "null")) == sent


@pytest.mark.parametrize(
    "response_format",
    [
        "json",
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "text", "json_schema": {"name": "it"}},
        json_schema(name="not a name"),
        json_schema(schema=[]),
        json_schema(colour="red"),
    ],
    ids=str,
)
def test_a_format_that_is_none_is_refused_by_name(response_format: Any) -> None:
    response = Door().chat(response_format=response_format)
    assert response.status_code == 400
    assert error_of(response)["param"] == "response_format"
    assert "response_format" in error_of(response)["message"]


class Colour(BaseModel):
    """The object that the model must return for a colour."""

    name: Literal["red", "green", "blue"]
    is_warm: bool


@pytest.fixture
def client(smollm: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=smollm.openai_url, api_key="none", max_retries=0) as client:
        yield client


QUESTION: Any = [{"role": "user", "content": "Say something about a colour."}]


@pytest.mark.triton
@pytest.mark.parametrize("tier", ["priority", "flex"])
def test_pydantic_parses_what_a_model_answers(client: openai.OpenAI, tier: Any) -> None:
    answer = client.chat.completions.parse(
        model="bros", messages=QUESTION, response_format=Colour, service_tier=tier, max_tokens=200, seed=3
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.parsed is not None
    assert answer.choices[0].message.parsed.name in ("red", "green", "blue")


@pytest.mark.triton
def test_a_streamed_answer_conforms_too(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="bros", messages=QUESTION, response_format=Colour, max_tokens=200, temperature=0
    ) as events:
        assert events.get_final_completion().choices[0].message.parsed is not None


@pytest.mark.triton
def test_an_answer_that_reaches_max_tokens_is_cut(client: openai.OpenAI) -> None:
    long: Any = json_schema(schema={"type": "object", "properties": {"a": {"const": "x" * 40}}, "required": ["a"]})
    answer = client.chat.completions.create(model="bros", messages=QUESTION, response_format=long, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.choices[0].message.content or "").startswith("{")


@pytest.mark.triton
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(client: openai.OpenAI) -> None:
    wrong: Any = json_schema(schema={"type": "colour"})
    with pytest.raises(openai.BadRequestError, match="json_schema: Invalid type: colour") as refused:
        client.chat.completions.create(model="bros", messages=QUESTION, response_format=wrong)
    assert refused.value.param == "response_format"


@pytest.mark.triton
def test_an_executor_that_cannot_says_so(sim: Server) -> None:
    with (
        openai.OpenAI(base_url=sim.openai_url, api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="executor 'sim'") as refused,
    ):
        client.chat.completions.create(model="bros", messages=QUESTION, response_format={"type": "json_object"})
    assert refused.value.param == "response_format"


@pytest.mark.triton
def test_a_model_tells_the_likeliest_tokens_of_each_place(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="bros", messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert len(content) == 4
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # it is greedy
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)
        values = [each.logprob for each in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
