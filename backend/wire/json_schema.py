"""Bounds on a client's JSON schema, which hold before anything compiles it. Pure.

Texts and names become automata: one of 60,000 characters makes a step take a second. A schema that the library would
follow wrongly is refused. It counts a repeated name twice, and rounds large whole numbers. It takes some numbers that a
limit excludes, and reads patterns as Rust does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from backend.core.errors import InvalidRequestError
from backend.wire.coerce import as_small_text, parse_json, show

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32  # of nested lists and objects
MAX_SCHEMA_TEXT_CHARS = 512  # of a name, and of a text that the output is compared with
MAX_EXACT = 2**53  # the library reads numbers as doubles, and so writes 9007199254740993 as 9007199254740992
_COMPARED = frozenset({"const", "enum", "pattern", "required"})
_LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
_EXCLUSIVE = {"exclusiveMinimum": ("maximum", "exclusiveMaximum"), "exclusiveMaximum": ("minimum", "exclusiveMinimum")}
_MAX_EXCLUSIVE_DIGITS = 15  # of an exclusive limit: the library takes one of more digits as a number itself
_COMBINED = ("allOf", "anyOf", "oneOf")
_INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}  # where the library cuts whole numbers: these are kept
_LOOKED_AT = (str, int, list, dict)
_OPTIONS = "x-guidance"  # how llguidance is to write JSON, or to read the schema; that is ours to say
# Control characters that JSON writes with an escape \u only. The library drops them where a grammar has no such escape.
_CONTROL = r"[\x00-\x07\x0b\x0e-\x1f\x7f]"
_HEX = r"(?i:(?:x|u00|U000000)(?:0[0-7bef]|1[0-9a-f]|7f)|[xu]\{0*(?:[0-7bef]|1[0-9a-f]|7f)\})"
_IN_PATTERN = rf"(?:{_CONTROL}|(?<!\\)(?:\\\\)*\\(?:[av]|{_HEX}))"
_CLASS = re.compile(r"\[(?:\\.|[^\]\\])+\]", re.DOTALL)  # of several characters: the others are left
_ALONE = re.compile(rf"\[{_IN_PATTERN}\]")
_CLASS_OPERATIONS = ("&&", "--", "~~")
_PART = re.compile(r"\\x\{|\\.|\[\^?\]?|&&|--|~~|.", re.DOTALL)  # of a pattern


def as_json_schema(name: str, value: object) -> str:
    """Return the text of a JSON schema that is no larger and no deeper than allowed. Raises InvalidRequestError."""
    text = as_small_text(name, value, MAX_SCHEMA_BYTES)
    schema = parse_json(name, text)
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{name}: expected a JSON object, got {show(schema)}")
    _check_values(name, schema)
    return text


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
    left = [_Found(schema)]
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
            left += [found.inner(item, key) for key, item in value.items() if isinstance(item, _LOOKED_AT)]
        elif isinstance(value, list):
            left += [found.inner(item) for item in value if isinstance(item, _LOOKED_AT)]


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
    if schema.get("type") != "integer":
        _check_exclusive(name, schema)


def _check_exclusive(name: str, schema: dict[str, object]) -> None:
    """Refuse exclusive limits that the library takes as numbers, of this schema with those that it combines."""
    limits = _limits_of(schema)
    for key, others in _EXCLUSIVE.items():
        for limit in limits[key]:
            if len(str(limit).lstrip("-").replace(".", "").partition("e")[0].strip("0")) > _MAX_EXCLUSIVE_DIGITS:
                words = f"{name}: {key}: {show(limit)} has more than {_MAX_EXCLUSIVE_DIGITS} digits"
                raise InvalidRequestError(f"{words}, and would not be excluded")
            near = [each for other in others for each in limits[other] if abs(each - limit) < 1]
            if limit == int(limit) and near:
                words = f"{name}: {key}: {show(limit)} would not be excluded beside a limit of {show(near[0])}"
                raise InvalidRequestError(f"{words}, less than 1 away")


def _limits_of(schema: dict[str, object]) -> dict[str, list[float]]:
    """Return the limits of a schema, and of those that it combines; one beyond `MAX_EXACT` is refused on its own."""
    found: dict[str, list[float]] = {key: [] for key in _LIMITS}
    left: list[object] = [schema]
    while left:
        if not isinstance(each := left.pop(), dict):
            continue
        for key in _LIMITS:
            limit = each.get(key)
            if isinstance(limit, (int, float)) and not isinstance(limit, bool) and abs(limit) <= MAX_EXACT:
                found[key].append(limit)
        for key in _COMBINED:
            if isinstance(combined := each.get(key), list):
                left += combined
    return found


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
    is_pattern = place is _Place.PATTERNS
    control = _control_in_pattern(text) if is_pattern else re.search(_CONTROL, text)
    if control is not None:
        raise InvalidRequestError(f"{name}: a name or text has the control character {control[0]!a}")
    if is_pattern and (part := _read_otherwise(text)):
        words = f"{name}: pattern {show(text)}: {part!r} there is read otherwise here than in JSON Schema"
        raise InvalidRequestError(f"{words} (ECMA 262)")


def _read_otherwise(pattern: str) -> str:
    """Return the first part of a pattern that Rust reads otherwise than ECMA 262; empty where there is none.

    Rust has classes inside classes, operations of classes, and braces after `\\x`. A `]` that begins a class is one of
    its characters, and to ECMA 262 its end.
    """
    is_in_class = False
    for match in _PART.finditer(pattern):
        part = match[0]
        opens_class = part.startswith("[")
        if part in ("\\x{", "[]", "[^]") or (is_in_class and (opens_class or part in _CLASS_OPERATIONS)):
            return part
        is_in_class = opens_class or (is_in_class and part != "]")
    return ""


def _control_in_pattern(text: str) -> re.Match[str] | None:
    return _ALONE.search(text) or re.search(_IN_PATTERN, _CLASS.sub("", text))
