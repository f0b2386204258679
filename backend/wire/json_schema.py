"""Bounds on a client's JSON schema, which hold before anything compiles it. Pure.

Texts and names become automata: one of 60,000 characters makes a step take a second. A schema that the library would
follow wrongly is refused. It counts a repeated name twice, and rounds large whole numbers. It takes some numbers that a
limit excludes, and reads patterns as Rust does.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from backend.core.errors import InvalidRequestError
from backend.wire.coerce import as_small_text, parse_json, show
from backend.wire.pattern import PatternError, rust_pattern

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32  # of nested lists and objects
MAX_SCHEMA_TEXT_CHARS = 512  # of a name, and of a text that the output is compared with
MAX_EXACT = 2**53  # the library reads numbers as doubles, and so writes 9007199254740993 as 9007199254740992
_COMPARED = frozenset({"const", "enum", "pattern", "required"})
_LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
_EXCLUSIVE = {"exclusiveMinimum": ("maximum", "exclusiveMaximum"), "exclusiveMaximum": ("minimum", "exclusiveMinimum")}
_MAX_EXCLUSIVE_DIGITS = 15  # of an exclusive limit: the library takes one of more digits as a number itself
_COMBINED = ("allOf", "anyOf", "oneOf")
_WITH_NUMBERS = (*_LIMITS, "properties", "patternProperties", "additionalProperties", "items", "prefixItems")
_INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}  # where the library cuts whole numbers: these are kept
_LOOKED_AT = (str, int, list, dict)
_OPTIONS = "x-guidance"  # how llguidance is to write JSON, or to read the schema; that is ours to say
# Control characters that JSON writes with an escape \u only. The library drops them where a grammar has no such escape.
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


def as_json_schema(name: str, value: object) -> str:
    """Return the text of a JSON schema that is no larger and no deeper than allowed. Raises InvalidRequestError."""
    text = as_small_text(name, value, MAX_SCHEMA_BYTES)
    schema = parse_json(name, text)
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{name}: expected a JSON object, got {show(schema)}")
    _check_values(name, schema)
    return text


def with_rust_patterns(text: str) -> str:
    """Return a schema that `as_json_schema` took, its patterns in the words of the library."""
    schema = json.loads(text)
    rewritten = _rewritten(_Found(schema))
    return text if rewritten == schema else json.dumps(rewritten, ensure_ascii=False)


def _rewritten(found: _Found) -> object:
    value = found.value
    if isinstance(value, dict):
        is_by_pattern = found.place is _Place.PATTERNS
        return {
            rust_pattern(key) if is_by_pattern else key: _rewritten(found.inner(item, key))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_rewritten(found.inner(item)) for item in value]
    return rust_pattern(value) if isinstance(value, str) and found.place is _Place.PATTERNS else value


class _Place(Enum):
    """What the keys of an object mean."""

    KEYWORDS = auto()
    NAMES = auto()
    PATTERNS = auto()
    DATA = auto()


_BY_NAME = frozenset({_Place.NAMES, _Place.PATTERNS})
_PLACES = (
    dict.fromkeys(("const", "enum", "default", "examples"), _Place.DATA)
    | dict.fromkeys(("properties", "$defs", "definitions", "dependentSchemas"), _Place.NAMES)
    | dict.fromkeys(("pattern", "patternProperties"), _Place.PATTERNS)
)


@dataclass(frozen=True, slots=True)
class _Found:
    value: object
    depth: int = 1
    is_compared: bool = False
    place: _Place = _Place.KEYWORDS

    def inner(self, value: object, key: str | None = None) -> _Found:
        """Return a value inside this one."""
        is_keyword = key is not None and self.place is _Place.KEYWORDS
        is_compared = self.is_compared or (is_keyword and key in _COMPARED)
        place = _Place.KEYWORDS if key is not None and self.place in _BY_NAME else self.place
        if is_keyword:
            place = _PLACES.get(key or "", place)
        return _Found(value, self.depth + 1, is_compared, place)


def _check_values(name: str, schema: dict[str, object]) -> None:
    """Look at every value, without recursion."""
    limits, left = _Limits(), [_Found(schema)]
    while left:
        found = left.pop()
        value = found.value
        if isinstance(value, str):
            if found.is_compared:
                _check_text(name, value, found.place)
            continue
        if isinstance(value, int):
            if found.is_compared:
                _check_exact(name, value)
            continue
        if found.depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequestError(f"{name}: lists and objects are nested more than {MAX_SCHEMA_DEPTH} deep")
        if isinstance(value, dict):
            _check_object(name, value, found.place)
            if found.place is _Place.KEYWORDS:
                limits.add(name, value)
            left += [found.inner(item, key) for key, item in value.items() if isinstance(item, _LOOKED_AT)]
        elif isinstance(value, list):
            left += [found.inner(item) for item in value if isinstance(item, _LOOKED_AT)]
    limits.check(name)


def _check_object(name: str, value: dict[str, object], place: _Place) -> None:
    for key in value:
        _check_text(name, key, place)
    if place is _Place.KEYWORDS:
        if _OPTIONS in value:
            raise InvalidRequestError(f"{name}: {_OPTIONS} is no keyword of JSON Schema")
        _check_min_properties(name, value)
        _check_limits(name, value)


def _check_limits(name: str, schema: dict[str, object]) -> None:
    for key in _LIMITS:
        limit = schema.get(key)
        is_kept = schema.get("type") == "integer" and limit == _INT64.get(key)
        if isinstance(limit, (int, float)) and not is_kept:
            _check_exact(f"{name}: {key}", limit)


@dataclass(slots=True)
class _Limits:
    """Limits of numbers of which the library may take an exclusive one as a number itself.

    That is where the other limit is less than 1 away from a whole one. A schema that combines others brings limits
    together that stand anywhere. Where there is one, every limit counts as every other's neighbour.
    """

    combines: bool = False
    found: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in _LIMITS})

    def add(self, name: str, schema: dict[str, object]) -> None:
        """Look at one schema. Raises InvalidRequestError."""
        self.combines |= _combines(schema)
        own = {key: [limit] for key in _LIMITS if (limit := _number(schema.get(key))) is not None}
        if schema.get("type") != "integer":
            _check_exclusive(name, own)
            for key, limits in own.items():
                self.found[key] += limits

    def check(self, name: str) -> None:
        """Look at all together. Raises InvalidRequestError."""
        if self.combines:
            _check_exclusive(name, self.found)


def _combines(schema: dict[str, object]) -> bool:
    """Return whether a value has to conform to two of the schemas in this one, or to this one and another."""
    parts: list[object] = [each for key in _COMBINED if isinstance(each := schema.get(key), list) and each]
    parts += [key for key in ("$ref", "$dynamicRef") if key in schema]
    parts += [key for key in _WITH_NUMBERS if key in schema][:1]
    of_all, patterns = schema.get("allOf"), schema.get("patternProperties")
    return (
        len(parts) > 1
        or (isinstance(of_all, list) and len(of_all) > 1)
        or (isinstance(patterns, dict) and len(patterns) + ("properties" in schema) > 1)
    )


def _check_exclusive(name: str, limits: Mapping[str, list[float]]) -> None:
    for key, others in _EXCLUSIVE.items():
        near = sorted({each for other in others for each in limits.get(other, ())})
        for limit in limits.get(key, ()):
            if len(str(limit).lstrip("-").replace(".", "").partition("e")[0].strip("0")) > _MAX_EXCLUSIVE_DIGITS:
                words = f"{name}: {key}: {show(limit)} has more than {_MAX_EXCLUSIVE_DIGITS} digits"
                raise InvalidRequestError(f"{words}, and would not be excluded")
            first = bisect_right(near, limit - 1)
            if limit == int(limit) and first < len(near) and near[first] < limit + 1:
                words = f"{name}: {key}: {show(limit)} would not be excluded beside a limit of {show(near[first])}"
                raise InvalidRequestError(f"{words}, less than 1 away")


def _number(limit: object) -> float | None:
    """Return a limit; None where there is none, or one beyond `MAX_EXACT`, which is refused on its own."""
    is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    return limit if is_number and abs(limit) <= MAX_EXACT else None  # type: ignore[return-value,arg-type]  # as above


def _check_exact(name: str, number: float) -> None:
    if abs(number) > MAX_EXACT:
        raise InvalidRequestError(
            f"{name}: {show(number)} is beyond ±2^53, where a double does not hold every whole number; use a text"
        )


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


def _check_text(name: str, text: str, place: _Place) -> None:
    if len(text) > MAX_SCHEMA_TEXT_CHARS:
        raise InvalidRequestError(f"{name}: a name or text of {len(text)} characters exceeds {MAX_SCHEMA_TEXT_CHARS}")
    if place is _Place.PATTERNS:
        try:
            rust_pattern(text)
        except PatternError as error:
            raise InvalidRequestError(f"{name}: pattern {show(text)}: {error}") from error
    elif control := _CONTROL.search(text):
        raise InvalidRequestError(f"{name}: a name or text has the control character {control[0]!a}")
