"""/v1/completions over the fake: prompts of every kind, and what only this endpoint has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.front.door import Door, error_of, events_of, usage_of


def test_an_answer_has_openais_shape() -> None:
    body = Door().complete(max_tokens=2, service_tier="flex").json()
    assert body.pop("id").startswith("cmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "text_completion",
        "model": "bros",
        "service_tier": "flex",
        "choices": [{"index": 0, "text": "one two ", "logprobs": None, "finish_reason": "length"}],
        "usage": usage_of(3, 2),
    }


def test_tokens_left_out_are_sixteen() -> None:
    assert Door().complete().json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a", ["a "]),
        ([5], ["<5> "]),
        (["a", "b"], ["a ", "b "]),
        ([[5], [6, 7]], ["<5> ", "<6> "]),
    ],
)
def test_a_prompt_is_text_or_tokens_or_several(prompt: object, texts: list[str]) -> None:
    body = Door().complete(prompt=prompt, max_tokens=1).json()
    assert [choice["text"] for choice in body["choices"]] == texts


def test_every_prompt_counts_once_in_the_usage() -> None:
    body = Door().complete(prompt=["a", "b c"], n=2, max_tokens=1).json()
    assert [choice["text"] for choice in body["choices"]] == ["a ", "a ", "b ", "b "]
    assert body["usage"] == usage_of(3, 4)


def test_an_echo_stands_in_front_of_its_answer() -> None:
    body = Door().complete(prompt=["a", "b"], echo=True, max_tokens=1).json()
    assert [choice["text"] for choice in body["choices"]] == ["aa ", "bb "]


def test_an_echo_begins_the_first_event_of_a_stream() -> None:
    events = events_of(Door().complete(prompt="a", echo=True, max_tokens=1, stream=True))
    assert [event["choices"][0]["text"] for event in events] == ["aa ", ""]


def test_log_probabilities_stand_beside_their_tokens() -> None:
    (choice,) = Door().complete(logprobs=0, max_tokens=2).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:0", "token_id:1"]
    assert choice["logprobs"]["token_logprobs"] == [-0.5, -0.5]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": [5], "echo": True}, "echo"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    response = Door().complete(**fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_the_likeliest_tokens_stand_beside_the_one_drawn() -> None:
    door = Door()
    (choice,) = door.complete(logprobs=2, max_tokens=2).json()["choices"]
    assert (door.inputs["return_log_probs"], door.inputs["num_top_log_probs"]) == (True, 2)
    assert choice["logprobs"]["top_logprobs"] == [{"token_id:0": -0.5, "token_id:1": -1.5}] * 2
