"""Tools: what of them reaches the engine, and which answers are calls."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from backend.wire.json_schema import as_json_schema
from client import FakeServer
from client.openai.tools import Function, Offer, Reader, Tool, offer_of, read_calls
from tests.front.door import Door, error_of, events_of
from tests.triton.servers import Server

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "$defs": {"City": {"type": "string"}},
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
LLAMA = '{"name": "weather", "parameters": {"city": "Ulm"}}'
NAMES = frozenset({"weather", "clock"})


class Scripted(FakeServer):
    """A server whose model says one text, a few characters a response."""

    def __init__(self, text: str, finish_reason: str = "stop") -> None:
        super().__init__()
        self.text = text
        self.reason = finish_reason

    def _responses(self, call: Any) -> Any:
        size = 5 if call.inputs["stream"] else len(self.text)
        pieces = [self.text[start : start + size] for start in range(0, len(self.text), size)]
        for number, piece in enumerate(pieces, 1):
            end = {"finish_reason": [self.reason]} if number == len(pieces) else {}
            yield {"text_output": [piece], "output_ids": [number], **end}


def names_and_arguments(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize(
    ("text", "before", "calls"),
    [
        (HERMES, "", [("weather", {"city": "Ulm"})]),
        (f"I look.\n{HERMES}\n{HERMES}", "I look.", [("weather", {"city": "Ulm"})] * 2),
        (HERMES.removesuffix("\n</tool_call>"), "", [("weather", {"city": "Ulm"})]),
        (LLAMA, "", [("weather", {"city": "Ulm"})]),
        (LLAMA + "; " + '{"name": "clock"}', "", [("weather", {"city": "Ulm"}), ("clock", {})]),
        (f"I look.\n{HERMES}\nI wait.", "I look.\n\nI wait.", [("weather", {"city": "Ulm"})]),
        (HERMES.replace("Ulm", "</tool_call>"), "", [("weather", {"city": "</tool_call>"})]),
        (HERMES.replace("Ulm", "<tool_call>"), "", [("weather", {"city": "<tool_call>"})]),
        (LLAMA.replace("Ulm", "<tool_call>"), "", [("weather", {"city": "<tool_call>"})]),
    ],
)
def test_calls_are_read_in_both_forms(text: str, before: str, calls: list[Any]) -> None:
    shown, found = read_calls(text, NAMES)
    assert (shown, names_and_arguments(found)) == (before, calls)


@pytest.mark.parametrize(
    "text",
    [
        "The sky is blue.",
        '{"name": "weather", "arguments": {"city": "Ul',
        '{"name": "unknown", "arguments": {}}',
        '{"name": "weather", "arguments": "Ulm"}',
        '{"name": ["weather"], "arguments": {}}',
        '{"name": {}, "arguments": {}}',
        '{"colour": "blue"}',
        LLAMA + " is what I would call",
        "<tool_call>",
        "<tool_call>no JSON</tool_call>",
        HERMES + "<tool_call>",
        HERMES.replace("}\n<", "} it is\n<"),
        '{"name": "weather", "arguments": {"far": 1e999}}',
        '{"name": "weather", "arguments": {"far": -Infinity}}',
        '{"name": "weather", "arguments": {"far": NaN}}',
        "[" * 100_000,
        "17",
        "",
    ],
    ids=lambda text: text[:30],
)
def test_any_other_text_is_the_answer_itself(text: str) -> None:
    assert read_calls(text, NAMES) == (text, [])


@pytest.mark.parametrize("text", ["The sky < the sea.", "  spaces", "a <tool", '{"a": 1}', "x" + LLAMA, "\n\n"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_no_text_is_lost_on_its_way(text: str, size: int) -> None:
    reader = Reader(Offer([], NAMES, None, True))
    shown = "".join(reader.push(text[start : start + size]) for start in range(0, len(text), size))
    rest, calls = reader.end()
    assert (shown + rest, calls) == (text, [])


@pytest.mark.parametrize("text", [HERMES, LLAMA, "I look. " + HERMES])
def test_an_answer_with_calls_has_openais_shape(text: str) -> None:
    (choice,) = Door(Scripted(text)).chat(tools=[WEATHER, CLOCK]).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == ("I look. " if text[0] == "I" else None)
    assert names_and_arguments(choice["message"]["tool_calls"]) == [("weather", {"city": "Ulm"})]


@pytest.mark.parametrize("text", [HERMES, LLAMA, "I look. " + HERMES])
def test_a_stream_brings_the_calls_as_one_delta(text: str) -> None:
    events = events_of(Door(Scripted(text)).chat(tools=[WEATHER], stream=True))
    deltas = [event["choices"][0]["delta"] for event in events]
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert [call.pop("index") for call in calls] == [0]
    assert names_and_arguments(calls) == [("weather", {"city": "Ulm"})]
    assert "".join(delta.get("content", "") for delta in deltas) == ("I look. " if text[0] == "I" else "")
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_max_tokens_cut_is_text() -> None:
    (choice,) = Door(Scripted(HERMES[:30], "length")).chat(tools=[WEATHER]).json()["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", HERMES[:30])


def test_parallel_calls_can_be_declined() -> None:
    (choice,) = Door(Scripted(HERMES * 2)).chat(tools=[WEATHER], parallel_tool_calls=False).json()["choices"]
    assert len(choice["message"]["tool_calls"]) == 1


def test_without_tools_an_answer_is_text_whatever_it_looks_like() -> None:
    for fields in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}):
        door = Door(Scripted(HERMES))
        (choice,) = door.chat(**fields).json()["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", HERMES)
        assert "tools" not in door.inputs


def test_tools_reach_the_engine_as_they_are() -> None:
    door = Door(Scripted("none"))
    door.chat(tools=[WEATHER, CLOCK], tool_choice="auto")
    assert json.loads(door.inputs["tools"]) == [WEATHER, CLOCK]
    assert "json_schema" not in door.inputs


def test_a_choice_that_must_call_is_held_to_a_schema() -> None:
    door = Door(Scripted('{"name": "clock", "arguments": {}}'))
    door.chat(tools=[WEATHER, CLOCK], tool_choice="required")
    weather, clock = json.loads(door.inputs["json_schema"])["anyOf"]
    assert weather["properties"]["name"] == {"const": "weather"}
    assert weather["properties"]["arguments"]["properties"]["city"] == {
        "$ref": "#/anyOf/0/properties/arguments/$defs/City"
    }
    assert clock["properties"]["name"] == {"const": "clock"}
    named = {"type": "function", "function": {"name": "clock"}}
    (choice,) = door.chat(tools=[WEATHER, CLOCK], tool_choice=named).json()["choices"]
    assert json.loads(door.inputs["json_schema"])["anyOf"] == [clock]
    assert names_and_arguments(choice["message"]["tool_calls"]) == [("clock", {})]


def test_only_references_are_moved_with_a_schema() -> None:
    data = {"$ref": "#/a"}
    schema: dict[str, Any] = {
        "$id": "http://cities",
        "id": {"type": "integer"},
        "properties": {
            "const": {"$ref": "#/$defs/City"},
            "$ref": {"const": data, "enum": [data], "default": data, "example": data, "examples": [data], "x-a": data},
            "all": {"allOf": [{"items": {"$ref": "#"}}]},
        },
    }
    tool = Tool(type="function", function=Function(name="clock", parameters=schema))
    offer = offer_of([tool], "required", True)
    assert offer is not None
    assert offer.schema is not None
    place = "#/anyOf/0/properties/arguments"
    arguments = offer.schema["anyOf"][0]["properties"]["arguments"]
    assert arguments.keys() == {"type", "properties", "id"}
    assert arguments["properties"] == {
        "const": {"$ref": f"{place}/$defs/City"},
        "$ref": schema["properties"]["$ref"],
        "all": {"allOf": [{"items": {"$ref": place}}]},
    }


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "note",
    [{"$id": "http://a/b"}, {"id": "a"}, {"example": {"id": "a"}}]
    + [{key: nested(40)} for key in ("default", "example", "examples", "x-a")],
    ids=lambda note: str(note)[:30],
)
def test_parameters_have_the_notes_that_a_response_format_may_have(note: dict[str, Any]) -> None:
    schema = {"properties": {"next": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "null"}}, **note}
    assert as_json_schema("json_schema", json.dumps(schema))
    tool = Tool(type="function", function=Function(name="f", parameters=schema))
    offer = offer_of([tool], "required", True)
    assert offer is not None
    assert as_json_schema("tools", json.dumps(offer.schema))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [CLOCK, WEATHER, CLOCK]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools"),
        ({"tools": [CLOCK] * 129}, "tools"),
        ({"tools": [CLOCK], "tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"functions": [{"name": "clock"}]}, "functions"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": ["null", "array"]}}}]},
            "tools",
        ),
    ],
    ids=str,
)
def test_a_wrong_tool_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    response = Door().chat(**fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_a_call_that_must_be_made_has_an_object_of_arguments() -> None:
    """An answer with other arguments would be read as no call."""
    for parameters in ({"anyOf": [{"type": "null"}, {"minItems": 1}]}, {"type": ["object", "null"]}):
        tool = Tool(type="function", function=Function(name="f", parameters=parameters))
        offer = offer_of([tool], "required", True)
        assert offer is not None
        assert offer.schema is not None
        assert offer.schema["anyOf"][0]["properties"]["arguments"]["type"] == "object"


def test_parameters_without_bottom_are_refused() -> None:
    parameters = nested(100)
    response = Door().chat(tools=[{"type": "function", "function": {"name": "deep", "parameters": parameters}}])
    assert response.status_code == 200
    tool = Tool(type="function", function=Function(name="deep", parameters=parameters))
    with pytest.raises(Exception, match="tools: parameters are nested more than 32 deep"):
        offer_of([tool], "required", True)


def test_messages_of_tools_reach_the_template_as_it_reads_them() -> None:
    door = Door()
    function = {"name": "weather", "arguments": '{"city": "Ulm"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    response = door.post(
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny and warm"},
            ]
        },
    )
    assert response.status_code == 200
    _, asked, answered = json.loads(door.inputs["messages"])
    assert asked["tool_calls"] == [call | {"function": function | {"arguments": {"city": "Ulm"}}}]
    assert (asked["content"], answered["role"], answered["tool_call_id"]) == ("", "tool", "call_1")


def test_half_a_pair_that_a_model_escapes_stays_escaped() -> None:
    """No encoding can say it: the answer, and with it a whole batch, would fail."""
    text = '{"name": "weather", "arguments": {"city": "\\ud83d"}}'
    (choice,) = Door(Scripted(text)).chat(tools=[WEATHER]).json()["choices"]
    assert names_and_arguments(choice["message"]["tool_calls"]) == [("weather", {"city": "\ud83d"})]


@pytest.mark.parametrize(
    "calls",
    [
        "call",
        [1],
        [{"function": {}}],
        [{"function": {"name": "f", "arguments": "x"}}],
        [{"function": {"name": "f", "arguments": '{"city": "\\ud83d"}'}}],
    ],
)
def test_calls_in_messages_that_are_none_are_refused(calls: Any) -> None:
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}]
    response = Door().post("/v1/chat/completions", {"messages": messages})
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"


@pytest.mark.triton
def test_a_model_without_tools_in_its_template_refuses_them_by_name(smollm: Server) -> None:
    tools: Any = [CLOCK]
    with (
        openai.OpenAI(base_url=smollm.openai_url, api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="tools: the model's chat template shows none") as refused,
    ):
        client.chat.completions.create(model="bros", messages=[{"role": "user", "content": "?"}], tools=tools)
    assert refused.value.param == "tools"
