"""Tools: how a chat offers them to the model, and how its answer becomes calls of them. Pure.

The engine's chat template shows the tools. Models write a call as JSON, `{"name": …, "arguments": {…}}`: between
`<tool_call>` marks (Hermes, Qwen), or as the whole answer, with `parameters` for `arguments` (Llama 3). Any other text
is the answer itself. A choice that must call a tool is held to a schema of calls.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from msgspec import Meta

from client.openai.errors import ApiError
from client.openai.objects import is_text, require_few

MAX_TOOLS = 128  # of a request, as OpenAI has it
_MAX_DEPTH = 32  # of parameters; what the engine takes of a schema
_OPEN = "<tool_call>"
_CLOSE = re.compile(r"</tool_call>|\Z")
_BETWEEN = re.compile(r"[\s;,]*")
_DATA = frozenset({"const", "enum", "default", "example", "examples"})  # keywords whose values are no schemas
_BASES = ("$id", "id")  # the URI of parameters. Inside the schema of a call, references would start there
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_.-]{1,64}$")]
Json = dict[str, Any]


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function as OpenAI describes one. `strict` has no effect beside a choice that is held to a schema anyhow."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class _Named(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: _Name


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool that must be called."""

    type: Literal["function"]
    function: _Named


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that one request offers. `schema`: of the call that the model must make; None: it may do without."""

    tools: Sequence[Json]
    names: frozenset[str]
    schema: Json | None
    is_parallel: bool


def offer_of(tools: Sequence[Tool] | None, choice: ToolChoice | None, is_parallel: bool) -> Offer | None:
    """Return the tools that a request offers; None where it has none, or wants none called. Raises ApiError."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError("tool_choice: there are no tools", param="tool_choice")
        return None
    if choice == "none":
        return None
    for tool in tools:
        _require_object(tool.function)
    functions = {tool.function.name: tool.function for tool in tools}
    if len(functions) < len(tools):
        names = [tool.function.name for tool in tools]
        twice = next(name for name in names if names.count(name) > 1)
        raise ApiError(f"tools: two functions have the name {twice!r}", param="tools")
    must: list[Function] = []
    if isinstance(choice, NamedTool):
        if choice.function.name not in functions:
            raise ApiError(f"tool_choice: there is no tool {choice.function.name!r}", param="tool_choice")
        must = [functions[choice.function.name]]
    elif choice == "required":
        must = list(functions.values())
    schema = {"anyOf": [_schema_of_call(*each) for each in enumerate(must)]} if must else None
    return Offer([msgspec.to_builtins(tool) for tool in tools], frozenset(functions), schema, is_parallel)


def _require_object(function: Function) -> None:
    """Raise ApiError where the arguments of a call could be no object: it would be read as no call."""
    kinds = (function.parameters or {}).get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        words = f"tools: parameters of {function.name!r} have type {str(kinds)[:40]!r}"
        raise ApiError(f"{words}; a call's arguments are an object", param="tools")


def _schema_of_call(index: int, function: Function) -> Json:
    place = f"#/anyOf/{index}/properties/arguments"
    given = _moved(function.parameters or {}, place)
    given = {key: value for key, value in given.items() if key not in _BASES or not isinstance(value, str)}
    arguments = {**given, "type": "object"} if given else {"type": "object", "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(value: Any, place: str, depth: int = 1, is_schema: bool = True) -> Any:
    """Return a schema that stands at `place` of another, so that its references still lead into it.

    is_schema: the names in `value` are keywords. In `properties` they are not; in `const`, nothing is.
    """
    if depth > _MAX_DEPTH:
        raise ApiError(f"tools: parameters are nested more than {_MAX_DEPTH} deep", param="tools")
    if isinstance(value, list):
        return [_moved(item, place, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {
        name: item
        if is_schema and (name in _DATA or name.startswith("x-"))
        else _moved(item, place, depth + 1, not is_schema or name not in _BY_NAME)
        for name, item in value.items()
    }
    if is_schema and isinstance(target := value.get("$ref"), str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


class Reader:
    """Reads one choice as it comes. Text from where a call may have begun is held back until its end."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._shown = ""
        self._held = ""

    def push(self, text: str) -> str:
        """Return the text that is no part of a call."""
        self._held += text
        start = self._start_of_call()
        shown, self._held = self._held[:start], self._held[start:]
        self._shown += shown
        return shown

    def end(self) -> tuple[str, list[Json]]:
        """Return the rest of the text, and the calls in OpenAI's form."""
        before, calls = read_calls(self._held, self._offer.names)
        return before, calls if self._offer.is_parallel else calls[:1]

    def _start_of_call(self) -> int:
        """Return where in the held text a call may begin; its length where it cannot."""
        if not self._shown.strip() and self._held.lstrip()[:1] in ("{", ""):
            return 0
        marked = self._held.find(_OPEN)
        if marked >= 0:
            return marked
        ends = (n for n in range(len(_OPEN) - 1, 0, -1) if self._held.endswith(_OPEN[:n]))
        return len(self._held) - next(ends, 0)


def read_calls(text: str, names: frozenset[str]) -> tuple[str, list[Json]]:
    """Return the text around the calls in `text`, and the calls; all of it and none, where any of them is none."""
    values, end = _objects(text)
    around, values = ("", values) if end == len(text) else _marked(text)
    calls = [call for value in values if (call := _call(value, names)) is not None]
    return (around.rstrip(), calls) if calls and len(calls) == len(values) else (text, [])


def _marked(text: str) -> tuple[str, list[object]]:
    """Return the text around the marked values in `text`, and the values; none where a mark has no end after them.

    JSON tells where a call ends: a mark in one of its texts is a part of it.
    """
    around, values, position = "", list[object](), 0
    while (start := text.find(_OPEN, position)) >= 0:
        around += text[position:start]
        found, end = _objects(text, start + len(_OPEN))
        close = _CLOSE.match(text, end)
        if not found or close is None:
            return text, []
        values += found
        position = close.end()
    return around + text[position:], values


def _objects(words: str, position: int = 0) -> tuple[list[object], int]:
    """Return the JSON values that follow one another from `position`, and where they end."""
    values: list[object] = []
    position = _skip(words, position)
    try:
        while position < len(words):
            value, end = _DECODER.raw_decode(words, position)
            values.append(value)
            position = _skip(words, end)
    except (ValueError, RecursionError):
        pass  # the text there is no JSON
    return values, position


def _finite(written: str) -> float:
    """Return a number. Raises ValueError for one that JSON cannot say again, and for `NaN` and `Infinity`."""
    if not math.isfinite(number := float(written)):
        raise ValueError(f"{written[:20]} is no number of JSON")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _skip(words: str, position: int) -> int:
    match = _BETWEEN.match(words, position)
    return position if match is None else match.end()


def _call(value: object, names: frozenset[str]) -> Json | None:
    if not isinstance(value, Mapping) or not isinstance(name := value.get("name"), str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, Mapping):
        return None
    function = {"name": name, "arguments": _written(arguments)}
    return {"id": f"call_{uuid4().hex}", "type": "function", "function": function}


def _written(arguments: Mapping[str, Any]) -> str:
    """Return arguments as JSON. Half of a UTF-16 pair, which no encoding can say, stays escaped."""
    text = json.dumps(arguments, ensure_ascii=False)
    return text if is_text(text) else json.dumps(arguments)


def calls_for_template(place: str, calls: object) -> list[Json]:
    """Return the calls of an assistant's message as templates read them: with arguments as an object."""
    if not isinstance(calls, list):
        raise ApiError(f"{place}: expected a list of calls", param="messages")
    return [_call_for_template(f"{place}[{index}]", call) for index, call in enumerate(calls)]


def _call_for_template(place: str, call: object) -> Json:
    function = call.get("function") if isinstance(call, dict) and call.get("type", "function") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(f"{place}: expected a function with a name", param="messages")
    assert isinstance(call, dict)
    arguments = _arguments(f"{place}.function.arguments", function.get("arguments") or "{}")
    if arguments is None:
        raise ApiError(f"{place}.function.arguments: expected a JSON object, as text", param="messages")
    its_id = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**its_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(place: str, written: object) -> Json | None:
    if isinstance(written, str):
        require_few(written.encode(errors="replace"), place, "messages")
    try:
        value = json.loads(written) if isinstance(written, str) else written
        words = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_text(words) else None
