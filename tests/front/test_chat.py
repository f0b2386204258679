"""/v1/chat/completions over the fake: what reaches the engine, and what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.front.door import Door, error_of, events_of, usage_of


def test_an_answer_has_openais_shape() -> None:
    body = Door().chat(max_tokens=3).json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "chat.completion",
        "model": "bros",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two three ", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": usage_of(3, 3),
    }


def test_options_reach_the_engine_by_its_own_names() -> None:
    door = Door()
    fields = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    same = {**fields, "ignore_eos": True, "min_tokens": 2, "top_p": 0.9, "temperature": 0.3}
    door.chat(**same, max_completion_tokens=7, stop="x", seed=4, ttft_slo_ms=250, tpot_slo_ms=50, deadline_ms=9000)
    sent = door.inputs
    assert {name: sent[name] for name in same} == same
    assert (sent["max_tokens"], sent["stop_words"], sent["seed"]) == (7, ["x"], 4)
    assert (sent["ttft_slo_ms"], sent["tpot_slo_ms"], sent["deadline_ms"]) == (250, 50, 9000)


def test_the_temperature_left_out_is_openais() -> None:
    door = Door()
    door.chat()
    assert door.inputs["temperature"] == 1.0


@pytest.mark.parametrize("top_p", [0, 1e-46, 1e-300])
def test_a_top_p_of_zero_is_the_likeliest_token(top_p: float) -> None:
    """So is one that is 0 as FP32, its type on Triton's wire."""
    door = Door()
    door.chat(top_p=top_p, top_k=40)
    assert door.inputs["temperature"] == 0.0
    assert "top_p" not in door.inputs


def test_a_negative_seed_is_one_of_the_engines() -> None:
    door = Door()
    door.chat(seed=-1)
    assert door.inputs["seed"] == 2**64 - 1


def test_a_null_is_a_field_left_out() -> None:
    door = Door()
    assert door.chat(stop=None, tools=None, seed=None, temperature=None, stream=None).status_code == 200
    assert "seed" not in door.inputs


def messages_sent(door: Door) -> list[dict[str, Any]]:
    return list(json.loads(door.inputs["messages"]))


def test_text_parts_are_joined_and_developers_speak_for_the_system() -> None:
    door = Door()
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    door.chat(messages=[{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}])
    assert messages_sent(door) == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "one two"}]


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    door = Door()
    message = door.chat().json()["choices"][0]["message"]
    spoken = message | {"annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    assert door.chat(messages=[spoken, {"role": "user", "content": "and"}]).status_code == 200
    assert messages_sent(door)[0] == {"role": "assistant", "content": message["content"]}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role: 'robot'"),
        ({"content": "x"}, "messages[0].role: 'NoneType'"),
        ({"role": ["user"], "content": "x"}, "messages[0].role: 'list'"),
        ({"role": {"a": 1}, "content": "x"}, "messages[0].role: 'dict'"),
        ({"role": "user"}, "messages[0].content: expected"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "content[0].type: 'image_url' is not text",
        ),
        ({"role": "user", "content": ["x"]}, "content[0]: expected type and text"),
        ({"role": "user", "content": "x", "weight": 1}, "messages[0]: 'weight' is not supported"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls[0]: expected a function"),
        ({"role": "user", "content": "x", "name": 3}, "messages[0].name: expected a string"),
    ],
)
def test_a_message_that_is_not_text_is_refused_by_name(message: dict[str, Any], words: str) -> None:
    response = Door().chat(messages=[message])
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"
    assert words in error_of(response)["message"]


def test_each_choice_is_a_request_with_a_seed_of_its_own() -> None:
    door = Door()
    body = door.chat(n=3, seed=7, max_tokens=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert sorted(call.inputs["seed"] for call in door.server.calls) == [7, 8, 9]
    assert {call.request_id for call in door.server.calls} == {f"{body['id']}-{index}" for index in range(3)}
    assert body["usage"] == usage_of(3, 6)


def test_log_probabilities_name_the_tokens_drawn() -> None:
    (choice,) = Door().chat(logprobs=True, max_tokens=2).json()["choices"]
    entry = {"logprob": -0.5, "bytes": None, "top_logprobs": []}
    expected = [{"token": "token_id:0", **entry}, {"token": "token_id:1", **entry}]
    assert choice["logprobs"] == {"content": expected, "refusal": None}


def test_a_stream_opens_with_the_role_and_closes_with_the_reason() -> None:
    events = events_of(Door().chat(stream=True, max_tokens=2, service_tier="priority"))
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert {event["service_tier"] for event in events} == {"priority"}
    assert len({event["id"] for event in events}) == 1
    deltas = [(choice["delta"], choice["finish_reason"]) for event in events for choice in event["choices"]]
    assert deltas == [
        ({"role": "assistant", "content": "", "refusal": None}, None),
        ({"content": "one "}, None),
        ({"content": "two "}, None),
        ({}, "length"),
    ]
    assert all("usage" not in event for event in events)


def test_usage_is_the_last_chunk_where_it_is_asked_for() -> None:
    *events, last = events_of(Door().chat(stream=True, max_tokens=2, stream_options={"include_usage": True}))
    assert [event["usage"] for event in events] == [None] * len(events)
    assert last["choices"] == []
    assert last["usage"] == usage_of(3, 2)


def test_usage_may_come_with_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(Door().chat(stream=True, max_tokens=2, stream_options=options))
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 1, 2, 2, 2]


def test_the_choices_of_a_stream_are_told_apart_by_their_index() -> None:
    events = events_of(Door().chat(stream=True, n=2, max_tokens=2))
    texts = ["", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["one two ", "one two "]


def test_an_error_before_the_first_token_has_a_status_of_its_own() -> None:
    response = Door().chat(stream=True, max_tokens=100_000)
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


def test_the_likeliest_tokens_stand_beside_the_one_drawn() -> None:
    door = Door()
    (choice,) = door.chat(logprobs=True, top_logprobs=2, max_tokens=2).json()["choices"]
    assert door.inputs["num_top_log_probs"] == 2
    top = [
        {"token": "token_id:0", "logprob": -0.5, "bytes": None},
        {"token": "token_id:1", "logprob": -1.5, "bytes": None},
    ]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [top, top]
    events = events_of(door.chat(logprobs=True, top_logprobs=2, max_tokens=1, stream=True))
    (content,) = [event["choices"][0]["logprobs"]["content"] for event in events if event["choices"][0]["logprobs"]]
    assert content[0]["top_logprobs"] == top


@pytest.mark.parametrize("fields", [{"top_logprobs": 21, "logprobs": True}, {"top_logprobs": 2}, {"top_logprobs": -1}])
def test_likeliest_tokens_that_cannot_be_had_are_refused_by_name(fields: dict[str, Any]) -> None:
    response = Door().chat(**fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == "top_logprobs"
