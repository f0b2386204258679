"""Bounds on a client's JSON schema, which hold before anything compiles it. Pure.

Texts and names become automata: one of 60,000 characters makes a step take a second.
"""

from __future__ import annotations

from backend.core.errors import InvalidRequestError
from backend.wire.coerce import as_small_text, parse_json, show

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32  # of nested lists and objects
MAX_SCHEMA_TEXT_CHARS = 512  # of a name, and of a text that the output is compared with
_COMPARED = frozenset({"const", "enum", "pattern"})


def as_json_schema(name: str, value: object) -> str:
    """Return the text of a JSON schema that is no larger and no deeper than allowed. Raises InvalidRequestError."""
    text = as_small_text(name, value, MAX_SCHEMA_BYTES)
    schema = parse_json(name, text)
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{name}: expected a JSON object, got {show(schema)}")
    _check_values(name, schema)
    return text


def _check_values(name: str, schema: dict[str, object]) -> None:
    """Look at every value, without recursion."""
    found: list[tuple[object, int, bool]] = [(schema, 1, False)]
    while found:
        value, depth, is_compared = found.pop()
        if isinstance(value, str):
            if is_compared:
                _check_text(name, value)
            continue
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequestError(f"{name}: lists and objects are nested more than {MAX_SCHEMA_DEPTH} deep")
        if isinstance(value, dict):
            for key, item in value.items():
                _check_text(name, key)
                if isinstance(item, (str, list, dict)):
                    found.append((item, depth + 1, is_compared or key in _COMPARED))
        elif isinstance(value, list):
            found += [(item, depth + 1, is_compared) for item in value if isinstance(item, (str, list, dict))]


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_SCHEMA_TEXT_CHARS:
        raise InvalidRequestError(f"{name}: a name or text of {len(text)} characters exceeds {MAX_SCHEMA_TEXT_CHARS}")
