"""Bounds on a schema: bytes, depth, and the length of names and of texts that the output is compared with."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from backend.core.errors import InvalidRequestError
from backend.wire.json_schema import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_TEXT_CHARS,
    as_json_schema,
    for_library,
)

LONG = "x" * (MAX_SCHEMA_TEXT_CHARS + 1)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


NOTES = {"title", "description", "default", "example", "examples", "x-from", "$id", "id"}


BY_NAME = {"properties", "patternProperties", "$defs", "schemas", "dependentRequired", "dependencies"}


def without_notes(schema: Any, key: str = "") -> Any:
    """Return a schema of those below without its notes."""
    if key in ("const", "enum"):
        return schema
    if isinstance(schema, list):
        return [without_notes(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_by_name = key in BY_NAME
    kept = {k: v for k, v in schema.items() if is_by_name or k not in NOTES}
    return {k: without_notes(v, "" if is_by_name else k) for k, v in kept.items()}


def test_a_schema_within_the_bounds_is_taken_without_its_notes() -> None:
    schemas = (
        nested(MAX_SCHEMA_DEPTH),
        {"description": LONG, "enum": [LONG[1:]], LONG[1:]: 1},
        {"properties": {"x-guidance": {}, "minProperties": {}, "const": {"description": LONG}}},
        {"const": {"x-guidance": 1, "minProperties": 3}, "default": {"minProperties": 3}},
        {"exclusiveMinimum": 0, "maximum": 1, "items": {"type": "integer", "exclusiveMinimum": 0, "maximum": 0.5}},
        {"exclusiveMinimum": 1e-9, "exclusiveMaximum": 0.25, "properties": {"minimum": {"maximum": 0.25}}},
        {"pattern": r"^\[[\[\]a-]+[-&](?:b)a&&b--$", "patternProperties": {r"[^\\]{2}": {}}},
        {"anyOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}], "title": "one of both", "default": 1},
        {"properties": {"a": {"exclusiveMinimum": 0}, "b": {"maximum": 0.5}}, "required": ["a"]},
        {"allOf": [{"$ref": "#/$defs/a"}], "description": "d", "$defs": {"a": {"exclusiveMinimum": 0}}, "maximum": 1},
        {"$id": "http://a/b", "anyOf": [{"type": "null"}, {"properties": {"next": {"$ref": "#"}}}]},
        {"properties": {"default": {"$ref": "#/properties/id"}, "id": {"$ref": "#/anyOf/0"}}, "anyOf": [True]},
        {"items": {"$ref": "#/$defs/a%20b~1~01"}, "$defs": {"a b/~1": {"$ref": "#/patternProperties/^a"}}}
        | {"patternProperties": {"^a": {}}},
        {"const": {"$ref": "#/default", "$id": "a"}, "properties": {"$ref": {}}},
        {"properties": {"id": {}}, "example": {"id": "a", "$ref": "b"}, "x-from": {"id": "a", "minProperties": 3}},
        {"properties": {"a": {"$id": "/properties/a"}, "b": {"id": "b"}}, "items": {"$ref": "#"}},
        {"$defs": {"a": {"id": "a", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        {"$ref": "#/components/schemas/title", "components": {"schemas": {"title": {}}}},
        {"$ref": "#/components/schemas/example", "components": {"schemas": {"example": {"type": "null"}}}},
        {"dependentRequired": {"title": ["default"], "default": ["x-from"]}, "dependencies": {"x-from": ["title"]}},
        {"minProperties": 1, "items": {"minProperties": 2, "required": ["a", "b"]}},
        {"minProperties": 2, "additionalProperties": False, "patternProperties": {"a": False}},
        {"const": "\n\t\b\f\r", "description": "\0"},
        {"pattern": r"^[\x00-\x7f][^\v]\\x01\x0a$", "properties": {r"\x01": {}}, "const": r"\x01"},
        {"patternProperties": {"[\0-\x1f]": {"const": r"\x01"}}},
        {"enum": [2**53, -(2**53), 1e300, True], "default": 2**60, "properties": {"minimum": {"examples": [2**60]}}},
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    )
    for schema in schemas:
        text = json.dumps(schema)
        for given in (text, text.encode()):
            assert json.loads(as_json_schema("json_schema", given)) == without_notes(schema)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not valid JSON"),
        ('{"enum": [1e400]}', "a number is too large"),
        ("[" * MAX_SCHEMA_BYTES, "nested too deep"),
        ('"object"', "expected a JSON object"),
        ("true", "expected a JSON object"),
        (" " * (MAX_SCHEMA_BYTES + 1), f"{MAX_SCHEMA_BYTES + 1} characters exceed {MAX_SCHEMA_BYTES}"),
        ('{"title": "%s"}' % ("ä" * (MAX_SCHEMA_BYTES // 2)), "bytes exceed"),
        (json.dumps(nested(MAX_SCHEMA_DEPTH + 1)), f"nested more than {MAX_SCHEMA_DEPTH} deep"),
        (json.dumps({"const": LONG}), f"{len(LONG)} characters exceeds"),
        (json.dumps({"properties": {"a": {"enum": ["b", {"c": LONG}]}}}), f"{len(LONG)} characters exceeds"),
        (json.dumps({"anyOf": [{"pattern": LONG}]}), f"{len(LONG)} characters exceeds"),
        ('{"x-guidance": {}}', "x-guidance is no keyword of JSON Schema"),
        ('{"properties": {"properties": {"allOf": [{"x-guidance": 1}]}}}', "x-guidance is no keyword of JSON Schema"),
        (json.dumps({"const": 2**53 + 1}), "9007199254740993 is beyond"),
        (json.dumps({"type": "integer", "exclusiveMinimum": 2**53}), "exclusiveMinimum: 9007199254740992 would not"),
        (json.dumps({"exclusiveMaximum": -(2**53)}), "exclusiveMaximum: -9007199254740992 would not be excluded"),
        (
            json.dumps({"properties": {"a": {"enum": [{"id": [-1234567890123456789]}]}}}),
            "-1234567890123456789 is beyond",
        ),
        (json.dumps({"type": "integer", "minimum": 2**63}), "minimum: 9223372036854775808 is beyond"),
        (json.dumps({"type": "number", "maximum": 2**63 - 1}), "maximum: 9223372036854775807 is beyond"),
        (json.dumps({"items": {"type": "integer", "exclusiveMaximum": 1e20}}), "exclusiveMaximum: 1e+20 is beyond"),
        ('{"exclusiveMinimum": 0, "maximum": 0.5}', "exclusiveMinimum: 0 would not be excluded beside a limit of 0.5"),
        (
            '{"minimum": -5.5, "exclusiveMaximum": -5}',
            "exclusiveMaximum: -5 would not be excluded beside a limit of -5.5",
        ),
        ('{"exclusiveMinimum": 0, "allOf": [{"anyOf": [{"maximum": 0.5}]}]}', "exclusiveMinimum: 0 would not be"),
        *(
            (
                json.dumps(schema | {"$defs": {"a": {"maximum": 0.5}, "b": {"exclusiveMinimum": 0}}}),
                "would not be excluded",
            )
            for schema in (
                {"$ref": "#/$defs/a", "exclusiveMinimum": 0},
                {"exclusiveMinimum": 0, "allOf": [{"$ref": "#/$defs/a"}]},
                {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]},
                {"properties": {"p": {"exclusiveMinimum": 0}}, "patternProperties": {"^p": {"maximum": 0.5}}},
                {"patternProperties": {"^p": {"maximum": 0.5}, "p$": {"exclusiveMinimum": 0}}},
                {"allOf": [{"properties": {"p": {"exclusiveMinimum": 0}}}, {"properties": {"p": {"maximum": 0.5}}}]},
                {"items": {"exclusiveMinimum": 0}, "allOf": [{"items": {"maximum": 0.5}}]},
            )
        ),
        ('{"exclusiveMinimum": 0, "allOf": [{"exclusiveMinimum": 1e400}]}', "exclusiveMinimum: inf is beyond"),
        ('{"exclusiveMinimum": 0.5, "anyOf": [{"maximum": 1' + "0" * 400 + "}]}", "is beyond ±2^53"),
        ('{"exclusiveMaximum": 0.9982735614979559}', "0.9982735614979559 has more than 15 digits"),
        ('{"pattern": "a[]b]"}', "json_schema: pattern 'a[]b]': '[]' there is not supported"),
        (r'{"patternProperties": {"\\Aa": {}}}', "'\\\\A' there is not supported"),
        (
            r'{"patternProperties": {"^\\d$": {"maximum": 5}, "^[0-9]$": {}}}',
            "two of patternProperties are one pattern",
        ),
        *(
            (json.dumps(schema | {"$ref": reference}), f"$ref '{reference}' leads to no schema in this one")
            for reference, schema in (
                ("#/default", {"default": {"pattern": "."}}),
                ("#/%64efault", {"default": {"pattern": "."}}),
                ("#/$defs/a/examples/0", {"$defs": {"a": {"examples": [{"const": "a"}]}}}),
                ("#/$defs/a/enum/0", {"$defs": {"a": {"enum": [{"const": LONG[:9]}]}}}),
                ("#/$defs", {"$defs": {"type": "string", "pattern": "."}}),
                ("#/a/pattern", {"a": {"pattern": {"const": "b"}}}),
                ("#/a%2Fproperties/default", {"a/properties": {"default": {}}, "a": {"properties": {"default": {}}}}),
                ("#/required/0", {"required": ["a"]}),
                ("#/allOf/00", {"allOf": [{}]}),
                ("#/allOf/1", {"allOf": [{}]}),
                ("#/$defs/a", {}),
                ("", {}),
                ("#a", {"$defs": {"b": {"$anchor": "a"}}}),
                ("https://json-schema.org/draft/2020-12/schema", {}),
                ("#/x-a", {"x-a": {"pattern": "."}}),
                ("#/example", {"example": {"pattern": "."}}),
                ("#/deprecated", {"deprecated": True}),
            )
        ),
        *(
            (json.dumps(schema), f"$ref '{reference}' stands in a schema with an $id of its own")
            for reference, schema in (
                ("#", {"allOf": [{"$id": "http://a/b", "$ref": "#"}]}),
                ("#/$defs/a", {"items": {"$id": "b", "anyOf": [{"$ref": "#/$defs/a"}]}, "$defs": {"a": True}}),
                ("#", {"$schema": "http://json-schema.org/draft-04/schema#", "items": {"id": "b", "$ref": "#"}}),
            )
        ),
        ('{"minProperties": 3}', "minProperties 3 exceeds the 0 names in required"),
        ('{"$defs": {"a": {"minProperties": 2, "required": ["b", "b"]}}}', "minProperties 2 exceeds the 1 names"),
        ('{"minProperties": 2, "additionalProperties": false, "patternProperties": {"a": {}}}', "minProperties 2"),
        ('{"minProperties": 2, "patternProperties": {"a": false}}', "minProperties 2"),
        (json.dumps({"enum": [{"a": "b\x01"}]}), "control character '\\x01'"),
        (json.dumps({"pattern": "a\x01"}), "is a control character that no answer has"),
        (json.dumps({"patternProperties": {r"\x01": {}}}), "is a control character that no answer has"),
        (json.dumps({"required": ["b\x7f"]}), "control character '\\x7f'"),
        (json.dumps({"properties": {LONG: {}}}), f"{len(LONG)} characters exceeds"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_schema_beyond_a_bound_is_refused(schema: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        as_json_schema("json_schema", schema)
    assert str(refused.value).startswith("json_schema: ")
    assert reason in str(refused.value)


def test_limits_are_compared_in_the_time_of_a_sort() -> None:
    """Each with each, on every level anew, a schema of 64 kB took seconds on the thread that takes all requests in."""
    schema: dict[str, Any] = {"anyOf": [{"exclusiveMinimum": 1}] * 1_380 + [{"maximum": 9}] * 2_300}
    for _ in range(14):
        schema = {"anyOf": [schema]}
    text = json.dumps(schema, separators=(",", ":"))
    began_s = time.process_time()
    assert json.loads(as_json_schema("json_schema", text)) == schema
    plain_s = time.process_time()
    assert as_json_schema("json_schema", text.replace("exclusiveMinimum", "minimum"))
    assert plain_s - began_s < 10 * (time.process_time() - plain_s)


def as_the_library_reads(schema: dict[str, Any]) -> object:
    return json.loads(for_library(json.dumps(schema)))


def test_patterns_are_rewritten_where_they_stand_and_nothing_else() -> None:
    schema = {
        "properties": {"pattern": {"const": {"pattern": "."}, "pattern": r"\d"}},
        "patternProperties": {r"^\w": {"enum": [r"\w"], "maxLength": 9}},
        "minimum": 0.5,
    }
    assert as_the_library_reads(schema) == {
        "properties": {"pattern": {"const": {"pattern": "."}, "pattern": "[0-9]"}},
        "patternProperties": {"^[0-9A-Za-z_]": {"enum": [r"\w"], "maxLength": 9}},
        "minimum": 0.5,
    }


def test_the_library_reads_no_note_and_all_the_rest() -> None:
    data = {"$id": "a", "title": "b", "default": 1, "x-c": {}}
    notes: dict[str, Any] = dict.fromkeys(
        ("title", "description", "$comment", "$id", "id", "$anchor", "$dynamicAnchor"), "#/default"
    )
    notes |= {"default": data, "example": data, "examples": [data], "x-source": data}
    notes |= dict.fromkeys(("deprecated", "readOnly", "writeOnly"), True)
    schema = {"$schema": "s", "const": data, "enum": [data], "properties": {"title": {"type": "null"}}}
    schema |= {"components": {"schemas": {"title": {"type": "null"}}}, "required": ["id"]}
    inside = schema | {"properties": dict.fromkeys(notes, schema), "anyOf": [schema]}
    full = notes | schema | {"properties": dict.fromkeys(notes, notes | schema), "anyOf": [notes | schema]}
    assert as_the_library_reads(full) == inside


def test_the_library_reads_the_last_of_two_equal_keys_as_the_checks_do() -> None:
    assert for_library(r'{"type": "string", "\u0074ype": "null"}') == '{"type": "null"}'
