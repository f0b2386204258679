"""Bounds on a client's JSON schema, which hold before anything compiles it. Pure.

Texts and names become automata: one of 60,000 characters makes a step take a second. A schema that the library would
follow wrongly is refused (`number_limits`; a repeated name counts twice), or said in other words (`pattern`). The words
that no check reads never reach the library (`for_library`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from urllib.parse import unquote

from backend.core.errors import InvalidRequestError
from backend.wire.coerce import as_small_text, parse_json, show
from backend.wire.number_limits import NumberLimits, check_exact
from backend.wire.pattern import PatternError, rust_pattern

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32  # of nested lists and objects
MAX_SCHEMA_TEXT_CHARS = 512  # of a name, and of a text that the output is compared with
_COMPARED = frozenset({"const", "enum", "pattern", "required"})
_LOOKED_AT = (str, int, list, dict)
_DATA_NOTES = frozenset({"default", "example", "examples"})  # and what begins with `x-`
_NAMES_OF_PLACES = frozenset({"$id", "id", "$anchor", "$dynamicAnchor"})  # which no permitted reference uses
_NOTES = _NAMES_OF_PLACES | {"title", "description", "$comment", "deprecated", "readOnly", "writeOnly"}
_OPTIONS = "x-guidance"  # how llguidance is to write JSON, or to read the schema; that is ours to say
# Control characters that JSON writes with an escape \u only. The library drops them where a grammar has no such escape.
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


def as_json_schema(name: str, value: object) -> str:
    """Return the text of a JSON schema that is no larger and no deeper than allowed, without its notes.

    A note may change what a library follows: with `"$id": "#/default"` that was the default, which no check had read.
    Raises InvalidRequestError.
    """
    text = as_small_text(name, value, MAX_SCHEMA_BYTES)
    schema = parse_json(name, text)
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{name}: expected a JSON object, got {show(schema)}")
    _check_values(name, schema, ("$id", "id") if "draft-04" in text else ("$id",))
    try:
        return _rewritten(schema, str)
    except ValueError as error:
        raise InvalidRequestError(f"{name}: a number is too large to be written: {error}") from error


def for_library(text: str) -> str:
    """Return a schema that `as_json_schema` took, its patterns in the words of the library."""
    return _rewritten(json.loads(text), rust_pattern)


def _rewritten(schema: object, in_words: Callable[[str], str]) -> str:
    """Return the text of `schema` without notes, its patterns by `in_words`."""

    def rewritten(found: _Found) -> object:
        value, is_pattern = found.value, found.place is _Place.PATTERNS
        if isinstance(value, dict):
            return {in_words(key) if is_pattern else key: rewritten(each) for key, each in found.items(value)}
        if isinstance(value, list):
            return [rewritten(found.inner(item)) for item in value]
        return in_words(value) if isinstance(value, str) and is_pattern else value

    return json.dumps(rewritten(_Found(schema)), allow_nan=False)


class _Place(Enum):
    """What the keys of an object mean."""

    KEYWORDS = auto()
    NAMES = auto()
    PATTERNS = auto()
    DATA = auto()


_BY_NAME = frozenset({_Place.NAMES, _Place.PATTERNS})
_PLACES = (
    dict.fromkeys(("const", "enum"), _Place.DATA)
    | dict.fromkeys(("properties", "$defs", "definitions", "schemas"), _Place.NAMES)
    | dict.fromkeys(("dependentSchemas", "dependentRequired", "dependencies"), _Place.NAMES)
    | dict.fromkeys(("pattern", "patternProperties"), _Place.PATTERNS)
)


@dataclass(frozen=True, slots=True)
class _Found:
    value: object
    depth: int = 1
    is_compared: bool = False
    place: _Place = _Place.KEYWORDS
    has_base: bool = False  # it stands in a schema that names a URI: its references start there

    def items(self, value: dict[str, object]) -> list[tuple[str, _Found]]:
        """Return what this object, its value, holds without notes."""
        return [(key, self.inner(item, key)) for key, item in value.items() if not self._is_note(key, item)]

    def _is_note(self, key: str, item: object) -> bool:
        """Return whether an item says nothing of the output. An object may be a schema that the client named so."""
        if self.place is not _Place.KEYWORDS:
            return False
        return key in _DATA_NOTES or key.startswith("x-") or (key in _NOTES and not isinstance(item, dict))

    def inner(self, value: object, key: str | None = None) -> _Found:
        """Return a value inside this one."""
        is_keyword = key is not None and self.place is _Place.KEYWORDS
        is_compared = self.is_compared or (is_keyword and key in _COMPARED)
        place = _Place.KEYWORDS if key is not None and self.place in _BY_NAME else self.place
        if is_keyword:
            place = _PLACES.get(key or "", place)
        return _Found(value, self.depth + 1, is_compared, place, self.has_base)

    def step(self, token: str) -> _Found | None:
        """Return what a token of a JSON pointer leads to."""
        if isinstance(self.value, dict):
            is_there = token in self.value and not self._is_note(token, self.value[token])
            return self.inner(self.value[token], token) if is_there else None
        if isinstance(self.value, list) and token.isdecimal() and len(token) <= len(str(len(self.value))):
            index = int(token)
            return self.inner(self.value[index]) if str(index) == token and index < len(self.value) else None
        return None


def _check_values(name: str, schema: dict[str, object], bases: Sequence[str]) -> None:
    """Look at every value, without recursion. `bases`: keywords that name the URI where references start."""
    limits, left = NumberLimits(name), [_Found(schema)]
    while left:
        found = left.pop()
        value = found.value
        if isinstance(value, str):
            if found.is_compared:
                _read_text(name, value, found.place)
            continue
        if isinstance(value, int):
            if found.is_compared:
                check_exact(name, value)
            continue
        if found.depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequestError(f"{name}: lists and objects are nested more than {MAX_SCHEMA_DEPTH} deep")
        if isinstance(value, dict):
            _check_object(name, value, found.place)
            if found.place is _Place.KEYWORDS:
                limits.add(value)
                if value is not schema and any(isinstance(value.get(key), str) for key in bases):
                    found = replace(found, has_base=True)
                _check_reference(name, schema, value.get("$ref"), found.has_base)
            left += [each for _, each in found.items(value) if isinstance(each.value, _LOOKED_AT)]
        elif isinstance(value, list):
            left += [found.inner(item) for item in value if isinstance(item, _LOOKED_AT)]
    limits.check()


def _check_object(name: str, value: dict[str, object], place: _Place) -> None:
    if len({_read_text(name, key, place) for key in value}) < len(value):
        raise InvalidRequestError(f"{name}: two of patternProperties are one pattern in other words")
    if place is _Place.KEYWORDS:
        if _OPTIONS in value:
            raise InvalidRequestError(f"{name}: {_OPTIONS} is no keyword of JSON Schema")
        _check_min_properties(name, value)


def _check_reference(name: str, whole: dict[str, object], reference: object, has_base: bool) -> None:
    """Raise InvalidRequestError where a schema refers to anything but a schema in the whole.

    The library follows any path, also into data, at which no check has looked as at a schema.
    """
    if not isinstance(reference, str):
        return
    if has_base:
        raise InvalidRequestError(f"{name}: $ref {show(reference)} stands in a schema with an $id of its own")
    if reference == "#":
        return
    head, *tokens = unquote(reference).split("/")
    found: _Found | None = _Found(whole) if head == "#" and "%2f" not in reference.lower() else None
    for token in tokens:
        found = found and found.step(token.replace("~1", "/").replace("~0", "~"))
    if found is None or found.place is not _Place.KEYWORDS or not isinstance(found.value, (dict, bool)):
        raise InvalidRequestError(f"{name}: $ref {show(reference)} leads to no schema in this one")


def _check_min_properties(name: str, schema: dict[str, object]) -> None:
    least, required = schema.get("minProperties"), schema.get("required")
    num_required = len({each for each in required if isinstance(each, str)}) if isinstance(required, list) else 0
    if not isinstance(least, (int, float)) or least <= max(1, num_required) or _has_named_only(schema):
        return
    raise InvalidRequestError(
        f"{name}: minProperties {show(least)} exceeds the {num_required} names in required; a name that comes twice "
        "would count twice"
    )


def _has_named_only(schema: dict[str, object]) -> bool:
    patterns = schema.get("patternProperties", {})
    has_patterns = not isinstance(patterns, dict) or any(each is not False for each in patterns.values())
    return schema.get("additionalProperties") is False and not has_patterns


def _read_text(name: str, text: str, place: _Place) -> str:
    """Return a name or text as the library reads it. Raises InvalidRequestError."""
    if len(text) > MAX_SCHEMA_TEXT_CHARS:
        raise InvalidRequestError(f"{name}: a name or text of {len(text)} characters exceeds {MAX_SCHEMA_TEXT_CHARS}")
    if place is _Place.PATTERNS:
        try:
            return rust_pattern(text)
        except PatternError as error:
            raise InvalidRequestError(f"{name}: pattern {show(text)}: {error}") from error
    if control := _CONTROL.search(text):
        raise InvalidRequestError(f"{name}: a name or text has the control character {control[0]!a}")
    return text
