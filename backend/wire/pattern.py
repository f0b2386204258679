"""Patterns of JSON Schema, which are regular expressions of ECMA 262, in the words of Rust's.

The library llguidance reads Rust's. The two share most of their signs and read some otherwise: `.`, `\\s`, `\\w`,
classes inside classes. Where a class takes in all control characters, the library lets quotes and backslashes pass too,
whatever the class says. So no class here has NUL, which JSON cannot spell without an escape \\u.
"""

from __future__ import annotations

import re

_SURROGATES = r"\\u[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}"
_ESCAPE = (
    rf"(?:{_SURROGATES}|"
    r"\\(?:u\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|c[A-Za-z]|[pP]\{\w+(?:=\w+)?\}|0[0-9]*|.))"
)
_MEMBER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_GROUP = re.compile(r"\((?:\?:|\?P?<[A-Za-z_]\w*>|(?!\?))")  # `?P<`: as Python names one, and so pydantic
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})\??")
_NAMED = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_SPACES = (
    r"\t-\r\x{20}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"  # ECMA 262's, 22.2
)
_SETS = {"d": "0-9", "w": "0-9A-Za-z_", "s": _SPACES}
_NUL = r"\x00"
_ANY = rf"[^\n\r\x{{2028}}\x{{2029}}{_NUL}]"
# Control characters that JSON writes with an escape \u only, which answers do not have.
_UNWRITABLE = frozenset(range(0x20)) - set(b"\b\t\n\f\r") | {0x7F}
_PLAIN = frozenset(" !\"#%&',-/:;<=>@_`~")  # that mean themselves to both, outside a class
_LAST = 0x10FFFF


class PatternError(ValueError):
    """A part of a pattern that is no ECMA 262 (with its flag u), or that cannot be followed here."""


def rust_pattern(pattern: str) -> str:
    """Return a pattern in Rust's words. Raises PatternError, which names the part that has none."""
    parts: list[str] = []
    position, can_repeat = 0, False
    while position < len(pattern):
        if pattern[position] == "[":
            members, end = _members(pattern, position)
            parts.append(_class(pattern[position:end], members))
            position, can_repeat = end, True
            continue
        if match := _GROUP.match(pattern, position):
            part, can_repeat = "(?:", False
        elif pattern[position] == "(":
            raise PatternError(f"{pattern[position : position + 3]!r} there is not supported")
        elif match := _QUANTIFIER.match(pattern, position):
            if not can_repeat:
                raise PatternError(f"{match[0]!r} repeats nothing")
            part, can_repeat = match[0], False
        elif match := _MEMBER.match(pattern, position):
            part, can_repeat = _single(match[0]), match[0] not in "^$|"
        else:
            raise AssertionError(pattern)
        parts.append(part)
        position = match.end()
    return "".join(parts)


def _single(part: str) -> str:
    """Return what stands outside a class."""
    if part in ("^", "$", "|", ")"):
        return part
    if part == ".":
        return _ANY
    if part in ("{", "\\"):
        raise PatternError(f"{part!r} there is not supported")
    if (found := _set(part)) is not None:
        return found
    if (code := _code(part)) in _UNWRITABLE:
        raise PatternError(f"{part!r} is a control character that no answer has")
    return part if part in _PLAIN else _literal(code)


def _members(pattern: str, start: int) -> tuple[list[str], int]:
    """Return the members of the class that begins at `start`, and where it ends.

    One after the other: an expression for the whole class would try all ways to read one that has no end.
    """
    members: list[str] = []
    position = start + len("[^" if pattern.startswith("[^", start) else "[")
    while not pattern.startswith("]", position):
        match = _MEMBER.match(pattern, position)
        if match is None:
            raise PatternError("'[' there is not supported")
        members.append(match[0])
        position = match.end()
    return members, position + 1


def _class(text: str, members: list[str]) -> str:
    is_negated = text.startswith("[^")
    if not members:
        raise PatternError(f"{text!r} there is not supported")
    parts: list[str] = []
    ranges: list[tuple[int, int]] = []
    while members:
        first = members.pop(0)
        is_range = len(members) > 1 and members[0] == "-"
        if (found := _set(first)) is not None:
            if is_range:
                raise PatternError(f"{first}- there is not supported")
            parts.append(found)
            continue
        low = high = _code(first, is_in_class=True)
        if is_range:
            high = _code(members[1], is_in_class=True)
            del members[:2]
            if high < low:
                raise PatternError(f"{text!r} has a range out of order")
        ranges.append((low, high))
    if not is_negated and not parts and all(_is_unwritable(*each) for each in ranges):
        raise PatternError(f"{text!r} has only control characters that no answer has")
    parts += [_range(max(1, low), high) for low, high in ranges if high > 0]
    return f"[^{''.join(parts)}{_NUL}]" if is_negated else f"[{''.join(parts)}]"


def _set(part: str) -> str | None:
    """Return the class that an escape stands for; None for one that stands for a character."""
    if len(part) == 2 and part[0] == "\\" and (members := _SETS.get(part[1].lower())):
        return f"[{members}]" if part[1].islower() else f"[^{members}{_NUL}]"
    if part.startswith((r"\p{", r"\P{")):
        return f"[{part}&&[^{_NUL}]]"
    return None


def _code(part: str, *, is_in_class: bool = False) -> int:
    """Return the character that a part stands for. Raises PatternError."""
    if part[0] != "\\":
        return ord(part)
    if len(part) == len(r"\ud83d\ude00"):
        return 0x10000 + ((int(part[2:6], 16) & 0x3FF) << 10) + (int(part[8:], 16) & 0x3FF)
    kind, digits = part[1:2], part[2:].strip("{}")
    if kind in "ux" and digits:
        code = int(digits, 16)
        if code > _LAST or 0xD800 <= code < 0xE000:
            raise PatternError(f"{part!r} is no character")
        return code
    if kind == "c" and digits:
        return ord(digits) % 32
    if kind in _NAMED and not digits:
        return _NAMED[kind]
    if kind == "b" and is_in_class:
        return 8
    if kind.isascii() and not kind.isalnum() and kind.isprintable():
        return ord(kind)
    raise PatternError(f"{part!r} there is not supported")


def _is_unwritable(low: int, high: int) -> bool:
    return high <= 0x7F and all(code in _UNWRITABLE for code in range(low, high + 1))


def _range(low: int, high: int) -> str:
    return _literal(low) if low == high else f"{_literal(low)}-{_literal(high)}"


def _literal(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"
