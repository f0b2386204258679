"""Tools: how a chat offers them to the model, and how its answer becomes calls of them. Pure.

The engine's chat template shows the tools. Models write a call as JSON, `{"name": …, "arguments": {…}}`: between
`<tool_call>` marks (Hermes, Qwen), or as the whole answer, with `parameters` for `arguments` (Llama 3). Any other text
is the answer itself. A choice that must call a tool is held to a schema of calls.
"""

from __future__ import annotations

import json
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
_MARKED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")
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
    functions = {tool.function.name: tool.function for tool in tools}
    must: list[Function] = []
    if isinstance(choice, NamedTool):
        if choice.function.name not in functions:
            raise ApiError(f"tool_choice: there is no tool {choice.function.name!r}", param="tool_choice")
        must = [functions[choice.function.name]]
    elif choice == "required":
        must = list(functions.values())
    schema = {"anyOf": [_schema_of_call(*each) for each in enumerate(must)]} if must else None
    return Offer([msgspec.to_builtins(tool) for tool in tools], frozenset(functions), schema, is_parallel)


def _schema_of_call(index: int, function: Function) -> Json:
    place = f"#/anyOf/{index}/properties/arguments"
    arguments = _moved(function.parameters, place) or {"type": "object", "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(value: Any, place: str, depth: int = 1) -> Any:
    """Return a schema that stands at `place` of another, so that its references still lead into it."""
    if depth > _MAX_DEPTH:
        raise ApiError(f"tools: parameters are nested more than {_MAX_DEPTH} deep", param="tools")
    if isinstance(value, list):
        return [_moved(item, place, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {name: _moved(item, place, depth + 1) for name, item in value.items()}
    if isinstance(target := value.get("$ref"), str) and target.startswith("#"):
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
    """Return the text in front of the calls in `text`, and the calls; all of it and none, where any of them is none."""
    before, mark, _ = text.partition(_OPEN)
    written = [match[1].strip() for match in _MARKED.finditer(text)] if mark else [text]
    found = [call for words in written for call in _objects(words) or [None]]
    calls = [_call(value, names) for value in found]
    if None in calls:
        return text, []
    return before.rstrip() if mark else "", [call for call in calls if call is not None]


def _objects(words: str) -> list[object]:
    """Return the JSON values that `words` consist of; none where there is anything else."""
    values: list[object] = []
    position = 0
    try:
        while position < len(words):
            value, position = json.JSONDecoder().raw_decode(words, _skip(words, position))
            values.append(value)
            position = _skip(words, position)
    except (ValueError, RecursionError):
        return []
    return values


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
