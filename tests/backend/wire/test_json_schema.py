"""Bounds on a schema: bytes, depth, and the length of names and of texts that the output is compared with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backend.core.errors import InvalidRequestError
from backend.wire.json_schema import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, MAX_SCHEMA_TEXT_CHARS, as_json_schema

LONG = "x" * (MAX_SCHEMA_TEXT_CHARS + 1)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def test_a_schema_within_the_bounds_is_taken_as_it_is() -> None:
    for schema in (nested(MAX_SCHEMA_DEPTH), {"description": LONG, "enum": [LONG[1:]], LONG[1:]: 1}):
        text = json.dumps(schema)
        assert as_json_schema("json_schema", text) == text
        assert as_json_schema("json_schema", text.encode()) == text


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * MAX_SCHEMA_BYTES, "nested too deep"),
        ('"object"', "expected a JSON object"),
        ("true", "expected a JSON object"),
        (" " * (MAX_SCHEMA_BYTES + 1), f"{MAX_SCHEMA_BYTES + 1} characters exceed {MAX_SCHEMA_BYTES}"),
        ('{"title": "%s"}' % ("ä" * (MAX_SCHEMA_BYTES // 2)), "bytes exceed"),
        (json.dumps(nested(MAX_SCHEMA_DEPTH + 1)), f"nested more than {MAX_SCHEMA_DEPTH} deep"),
        (json.dumps({"const": LONG}), f"{len(LONG)} characters exceeds"),
        (json.dumps({"properties": {"a": {"enum": ["b", {"c": LONG}]}}}), f"{len(LONG)} characters exceeds"),
        (json.dumps({"anyOf": [{"pattern": LONG}]}), f"{len(LONG)} characters exceeds"),
        (json.dumps({"properties": {LONG: {}}}), f"{len(LONG)} characters exceeds"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_schema_beyond_a_bound_is_refused(schema: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        as_json_schema("json_schema", schema)
    assert str(refused.value).startswith("json_schema: ")
    assert reason in str(refused.value)
