"""Fields: their ranges, the refused values, and the field's name in each refusal."""

from __future__ import annotations

from typing import Any

import pytest

from client.openai.bodies import REFUSED, ChatBody, CompletionBody
from tests.front.door import Door, error_of


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"ttft_slo_ms": 0}, "ttft_slo_ms"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"service_tier": ["flex"]}, "service_tier"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"cache_salt": "é" * 129}, "cache_salt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"pace": 1}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    response = Door().chat(**fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param in error["message"]


def test_an_unknown_tier_is_told_those_there_are() -> None:
    message = error_of(Door().chat(service_tier="gold"))["message"]
    assert message == "service_tier: 'gold' is none of auto, default, flex, scale, priority, fast"


def test_a_salt_is_counted_in_characters() -> None:
    assert Door().chat(cache_salt="é" * 128).status_code == 200


def test_a_body_without_what_it_must_have_is_refused_by_name() -> None:
    assert error_of(Door().post("/v1/chat/completions", {}))["param"] == "messages"
    assert error_of(Door().post("/v1/completions", {}))["param"] == "prompt"


def test_another_model_is_not_found() -> None:
    response = Door().chat(model="gpt-5")
    assert response.status_code == 404
    assert (error_of(response)["param"], error_of(response)["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize("name", REFUSED[ChatBody])
def test_what_we_cannot_honour_is_refused_by_name_in_a_chat(name: str) -> None:
    response = Door().chat(**{name: {"anything": 1}})
    assert response.status_code == 400
    assert error_of(response)["param"] == name


@pytest.mark.parametrize("name", [name for name, refused in REFUSED[ChatBody].items() if refused.harmless])
def test_a_value_that_asks_for_nothing_is_taken(name: str) -> None:
    for value in REFUSED[ChatBody][name].harmless:
        assert Door().chat(**{name: value}).status_code == 200


@pytest.mark.parametrize("body_type", [ChatBody, CompletionBody])
def test_no_field_is_both_honoured_and_refused(body_type: type[ChatBody] | type[CompletionBody]) -> None:
    assert not set(body_type.__struct_fields__) & set(REFUSED[body_type])
