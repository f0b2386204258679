"""One raw value to one typed value, or an InvalidRequestError that names the field. Pure."""

from __future__ import annotations

import json
import math
import reprlib

import numpy as np

from backend.core.errors import InvalidRequestError

_SHOWN_CHARS = 60
_SHORT = reprlib.Repr()  # of nested values; looks at a few items only
MAX_WORD_BYTES = 256  # of a text that stands for a number, a truth value or a choice


def as_text(name: str, value: object, max_bytes: int = MAX_WORD_BYTES) -> str:
    """Return text; bytes must be UTF-8. Its length is looked at first."""
    if isinstance(value, (str, bytes)) and len(value) > max_bytes:
        unit = "bytes" if isinstance(value, bytes) else "characters"
        raise InvalidRequestError(f"{name}: {len(value)} {unit} exceed {max_bytes}")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"{name}: invalid UTF-8 at byte {error.start}") from error
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name}: expected a string, got {show(value)}")
    if max(value, default="") >= "\ud800" and any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidRequestError(f"{name}: a lone surrogate is no text")
    return value


def as_small_text(name: str, value: object, max_bytes: int) -> str:
    """Return text of at most `max_bytes` as UTF-8."""
    text = as_text(name, value, max_bytes)
    if (num_bytes := len(text.encode())) > max_bytes:
        raise InvalidRequestError(f"{name}: {num_bytes} bytes exceed {max_bytes}")
    return text


def as_int(name: str, value: object) -> int:
    """Return a whole number; the strings and whole floats that load tools send are taken."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    if isinstance(value, (str, bytes)):
        text = as_text(name, value).strip()
        if text.removeprefix("-").isdecimal() and text.isascii() and len(text) <= 20:
            return int(text)
    raise InvalidRequestError(f"{name}: expected a whole number, got {show(value)}")


def as_float(name: str, value: object) -> float:
    """Return a finite number; strings that spell one are taken."""
    number = math.nan
    if isinstance(value, (str, bytes)):
        value = as_text(name, value)
    if isinstance(value, (str, int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            number = math.nan if isinstance(value, str) and "_" in value else float(value)  # Python reads 1_0 as 10
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise InvalidRequestError(f"{name}: expected a finite number, got {show(value)}")
    return number


def as_bool(name: str, value: object) -> bool:
    """Return a truth value; `true`, `false`, 1 and 0 are taken."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    word = str(value).lower() if isinstance(value, (int, np.integer)) else as_text(name, value).strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise InvalidRequestError(f"{name}: expected true or false, got {show(value)}")
    return word in ("true", "1")


def parse_json(name: str, text: str) -> object:
    """Return decoded JSON; NaN and the like are refused."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise InvalidRequestError(f"{name}: not valid JSON: nested too deep") from error
    except ValueError as error:
        raise InvalidRequestError(f"{name}: not valid JSON: {error}") from error


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def show(value: object) -> str:
    """Return a value as it stands in a message: cut where it is long."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bytes)):
        value = value[: _SHOWN_CHARS + 1]
    text = _SHORT.repr(value) if isinstance(value, (list, dict)) else repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
