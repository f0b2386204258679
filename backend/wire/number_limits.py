"""Numbers of a JSON schema that the library llguidance reads otherwise: large ones, and some limits. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.core.errors import InvalidRequestError
from backend.wire.coerce import show

MAX_EXACT = 2**53  # the library reads numbers as doubles, and so writes 9007199254740993 as 9007199254740992
_LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
_EXCLUSIVE = {"exclusiveMinimum": ("maximum", "exclusiveMaximum"), "exclusiveMaximum": ("minimum", "exclusiveMinimum")}
_MAX_EXCLUSIVE_DIGITS = 15  # of an exclusive limit: the library takes one of more digits as a number itself
_COMBINED = ("allOf", "anyOf", "oneOf")
_WITH_NUMBERS = (*_LIMITS, "properties", "patternProperties", "additionalProperties", "items", "prefixItems")
_INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}  # where the library cuts whole numbers: these are kept


def check_exact(name: str, number: float) -> None:
    """Raise InvalidRequestError for a number that the library would round."""
    if abs(number) > MAX_EXACT:
        raise InvalidRequestError(
            f"{name}: {show(number)} is beyond ±2^53, where a double does not hold every whole number; use a text"
        )


@dataclass(slots=True)
class NumberLimits:
    """The limits of the numbers of one schema and of all that stand in it.

    The library may take an exclusive limit as a number itself: where it is whole, and the other limit less than 1 away.
    A schema that combines others brings limits together that stand anywhere. Where there is one, every limit counts as
    every other's neighbour.
    """

    name: str  # of the schema, for errors
    _has_combined: bool = False
    _found: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in _LIMITS})

    def add(self, schema: dict[str, object]) -> None:
        """Look at one schema. Raises InvalidRequestError."""
        _check_exact_limits(self.name, schema)
        self._has_combined |= _combines(schema)
        own = {key: [limit] for key in _LIMITS if (limit := _number(schema.get(key))) is not None}
        if schema.get("type") != "integer":
            _check_exclusive(self.name, own)
            for key, limits in own.items():
                self._found[key] += limits

    def check(self) -> None:
        """Look at all together. Raises InvalidRequestError."""
        if self._has_combined:
            _check_exclusive(self.name, self._found)


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


def _check_exact_limits(name: str, schema: dict[str, object]) -> None:
    for key in _LIMITS:
        limit = schema.get(key)
        is_kept = schema.get("type") == "integer" and limit == _INT64.get(key)
        if isinstance(limit, (int, float)) and not is_kept:
            check_exact(f"{name}: {key}", limit)
            if key in _EXCLUSIVE and abs(limit) == MAX_EXACT:  # the library takes the next double, which is the same
                raise InvalidRequestError(f"{name}: {key}: {show(limit)} would not be excluded")
