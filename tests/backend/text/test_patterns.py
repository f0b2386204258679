"""Random patterns: what the library lets through is what Python's `re` finds, which reads these as ECMA 262 does."""

from __future__ import annotations

import json
import random
import re
import warnings

import pytest

from backend.core.errors import InvalidRequestError
from backend.core.request import PriorityClass
from backend.text.grammar import Grammars
from backend.text.tokenizer import Tokenizer
from backend.wire.json_schema import as_json_schema
from tests.backend.text.following import is_taken

CHARS = [*'ab"\\-]^[&~ {}().*+?|$/<>1_', "é", "\n", "\t"]
SETS = (r"\d", r"\w", r"\D", r"\W")
ENDS_OF_RANGES = 'abcdefABC0123456789 !"#+,./'


class Maker:
    """Makes patterns and texts."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def pattern(self) -> str:
        inner = self._alternatives(0)
        return f"^(?:{inner})$" if self._chance.random() < 0.8 else inner

    def text(self) -> str:
        return "".join(self._chance.choices(CHARS, k=self._chance.randrange(5)))

    def _alternatives(self, depth: int) -> str:
        return "|".join(self._sequence(depth) for _ in range(self._chance.choice([1, 1, 1, 2])))

    def _sequence(self, depth: int) -> str:
        quantifiers = ["", "", "", "*", "+", "?", "{1,2}", "{2}", "*?"]
        num = self._chance.randint(1, 3)
        return "".join(self._atom(depth) + self._chance.choice(quantifiers) for _ in range(num))

    def _atom(self, depth: int) -> str:
        kind = self._chance.random()
        if kind < 0.35 or depth > 2:
            return re.escape(self._chance.choice(CHARS)).replace("\\\n", r"\n").replace("\\\t", r"\t")
        if kind < 0.75:
            members = "".join(self._member() for _ in range(self._chance.randint(1, 4)))
            return f"[{self._chance.choice(['', '^'])}{members}]"
        if kind < 0.85:
            return self._chance.choice(SETS)
        return f"{self._chance.choice(['(', '(?:'])}{self._alternatives(depth + 1)})"

    def _member(self) -> str:
        kind = self._chance.random()
        if kind < 0.15:
            return self._chance.choice(SETS)
        if kind < 0.35:
            return "-".join(sorted(self._chance.sample(ENDS_OF_RANGES, 2)))
        char = self._chance.choice(CHARS)
        return {"\n": r"\n", "\t": r"\t"}.get(char, "\\" + char if char in "\\]^-" else char)


def lets_pass(grammars: Grammars, tokenizer: Tokenizer, schema: str, text: str) -> bool:
    """Return whether an answer may be `text`. A pattern that nothing matches is refused."""
    try:
        grammar = grammars.grammar(schema, PriorityClass.REAL_TIME)
    except InvalidRequestError as error:
        if "Regex is empty" in str(error):
            return False
        raise
    return is_taken(grammar, tokenizer, text)


@pytest.mark.parametrize("seed", range(40))
def test_an_answer_matches_its_pattern(grammars: Grammars, tokenizer: Tokenizer, seed: int) -> None:
    maker = Maker(seed)
    pattern = maker.pattern()
    with warnings.catch_warnings(action="ignore"):  # of sets in sets, which ECMA 262 has no more than Python
        twin = re.compile("(?a)" + (pattern.removesuffix("$") + r"\Z" if pattern.startswith("^") else pattern))
    schema = as_json_schema("json_schema", json.dumps({"type": "string", "pattern": pattern}))
    texts = [maker.text() for _ in range(20)]
    assert [lets_pass(grammars, tokenizer, schema, text) for text in texts] == [
        bool(twin.search(text)) for text in texts
    ]
