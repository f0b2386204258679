"""Words of others on a terminal: they move no cursor and change no title."""

from __future__ import annotations

import sys
from typing import TextIO

_KEPT = "\n\t"
_INSTEAD = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """Return `text` with its control characters replaced, but for line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(each if each in _KEPT or not _is_control(each) else _INSTEAD for each in text)


def for_output(text: str, output: TextIO | None = None) -> str:
    """Return `text` as it may be written to `output` (default: standard output): whole, unless that is a terminal."""
    return printable(text) if (sys.stdout if output is None else output).isatty() else text


def _is_control(character: str) -> bool:
    """C0, DEL and C1: what a terminal obeys."""
    return ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0
