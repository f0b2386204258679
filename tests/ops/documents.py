"""What the documents tell people to type: scripts in fences, lines of indented blocks, commands within sentences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "CONTRIBUTING.md"
PROSE = [ROOT / "README.md", GUIDE, *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [*PROSE, *sorted((ROOT / "bench" / "results").glob("*.md"))]
LANGUAGES = {"sh", "python", "text"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
_WITHIN_A_SENTENCE = re.compile(r"`([^`\n]+)`")
_REDIRECTION = re.compile(r" [12]?>+ ?\S+")
_OPERATORS = set(";|&")


def fences(document: Path) -> list[tuple[str, str]]:
    """Return language and text of every fenced block."""
    return _FENCE.findall(document.read_text())


def loose_commands(document: Path, programs: set[str]) -> Iterator[list[str]]:
    """Yield the words of what stands outside of fences and begins like a command of one of `programs`.

    A name alone is a name, not a command: there must be an argument.
    """
    text = _FENCE.sub("", document.read_text())
    for block in _INDENTED.findall(text):
        if begins_with_one_of(programs, block.split()):
            yield from commands(block)
    for span in _WITHIN_A_SENTENCE.findall(_INDENTED.sub("", text)):
        words = span.split()
        if len(words) > 1 and begins_with_one_of(programs, words):
            yield from commands(span)


def begins_with_one_of(programs: set[str], words: list[str]) -> bool:
    """Return whether the program that `words` start, variables for it aside, is one of `programs`."""
    return program_of(words) in programs


def program_of(words: list[str]) -> str:
    """Return the program's name, without the environment's directory."""
    return next((word for word in words if not re.match(r"\w+=", word)), "").removeprefix(".venv/bin/")


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell script, without comments and redirections."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(_REDIRECTION.sub("", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= _OPERATORS:
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words
