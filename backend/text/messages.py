"""Chat messages and tools: from a client's JSON to the values of a chat template. No other module parses them."""

from __future__ import annotations

from backend.core.errors import InvalidRequestError
from backend.wire.coerce import parse_json

MAX_DEPTH = 32  # of nested lists and objects: templates and filters recurse over a message's values


def parse_messages(text: str) -> list[dict[str, object]]:
    """Return the messages that `text` holds. Raises InvalidRequestError."""
    messages = parse_json("messages", text)
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError("messages: expected a non-empty JSON list of {role, content} objects")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise InvalidRequestError(f"messages[{index}]: expected an object with the strings role and content")
    _check_values("messages", messages)
    return messages


def parse_tools(text: str) -> list[dict[str, object]]:
    """Return the tools that `text` holds. Raises InvalidRequestError."""
    tools = parse_json("tools", text)
    if not isinstance(tools, list) or not tools:
        raise InvalidRequestError("tools: expected a non-empty JSON list of {type, function} objects")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(f"tools[{index}]: expected an object with a function that has a name")
    _check_values("tools", tools)
    return tools


def _check_values(name: str, given: list[object]) -> None:
    """Refuse values that are nested too deeply, and strings that are no text, at any depth. Does not recurse."""
    found: list[tuple[object, int]] = [(given, 1)]
    while found:
        value, depth = found.pop()
        if isinstance(value, str):
            _check_text(name, value)
        elif isinstance(value, (list, dict)):
            if depth > MAX_DEPTH:
                raise InvalidRequestError(f"{name}: lists and objects are nested more than {MAX_DEPTH} deep")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            found += [(item, depth + 1) for item in inner if isinstance(item, (str, list, dict))]


def _check_text(name: str, value: str) -> None:
    """JSON may escape half of a UTF-16 pair, which no encoding can say."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name}: a lone surrogate is no text") from error
