"""Schemas as masks: each text that passes conforms, and a schema that cannot be compiled is refused soon."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from backend.core.errors import BrosError, InvalidRequestError, OverloadedError
from backend.core.request import PriorityClass
from backend.text import grammar
from backend.text.grammar import Grammar, Grammars
from backend.text.schema_check import SchemaCheck
from backend.text.tokenizer import Tokenizer, load_tokenizer
from backend.wire.json_schema import as_json_schema
from tests.backend.text.following import follows, is_taken

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SLOW = {"type": "integer", "multipleOf": 9_999_991}  # takes minutes


def make(grammars: Grammars, schema: dict[str, Any]) -> Grammar:
    return grammars.grammar(json.dumps(schema), PriorityClass.REAL_TIME)


def test_a_schema_is_compiled_once_and_each_request_follows_its_own_copy(
    grammars: Grammars, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for each request, a large one held up the known schemas of others."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 3}
    first, ends = make(grammars, schema), tokenizer.eos_token_ids
    expected = draw(first, ends, seed=1)
    monkeypatch.delattr(grammars._library, "LLMatcher")
    second, third = make(grammars, schema), make(grammars, schema)
    second.allowed(expected[:2])
    assert draw(third, ends, seed=1) == expected
    assert not (second.allowed(expected[:2]) != make(grammars, schema).allowed(expected[:2])).any()


@pytest.mark.parametrize("num", [600, 2000])
def test_a_grammar_too_large_for_a_quick_mask_is_refused_before_a_request_waits(grammars: Grammars, num: int) -> None:
    """Masks of thousands of next tokens took up to 0.1 s each on the engine's thread, and then the request failed.

    A schema that is taken can be followed, wherever the many properties stand.
    """
    properties = {f"n{i}": {"type": "string"} for i in range(num)}
    many = {"type": "object", "properties": properties, "additionalProperties": False}
    for schema, opening in (
        (many, '{"'),
        ({"type": "object", "properties": {"a": many}, "required": ["a"]}, '{"a":{"'),
    ):
        if num > 1000:
            with pytest.raises(InvalidRequestError, match="json_schema: grammar size"):
                make(grammars, schema)
        else:
            text = [char + 3 for char in opening.encode()]
            assert make(grammars, schema).allowed(text)[ord("n") + 3]


def test_compiled_schemas_that_requests_hold_have_a_bound(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text may compile to megabytes. A class that holds too many gets no new one; known ones go on."""
    gc.collect()
    before_bytes = [grammars._shared.of(each) for each in PriorityClass]
    held, grown = [], 0
    for turn in range(3):
        held.append(make(grammars, {"type": "integer", "multipleOf": 1009, "description": f"{turn}"}))
        grown_before, grown = grown, grammars._shared.of(PriorityClass.REAL_TIME) - before_bytes[0]
        assert 1e5 < grown - grown_before < 1e7
    monkeypatch.setattr(grammar, "MAX_COMPILED_BYTES", before_bytes[0] + grown // 2)
    with pytest.raises(
        OverloadedError, match=r"json_schema: compiled schemas of class rt take \d+ bytes; the limit for"
    ):
        make(grammars, {"type": "integer", "multipleOf": 1019})
    assert make(grammars, {"type": "integer", "multipleOf": 1009, "description": "0"}).allowed([]).any()
    assert grammars.grammar('{"multipleOf": 1021}', PriorityClass.BEST_EFFORT).allowed([]).any()
    assert len(held) == 3


def draw(grammar: Grammar, ends: frozenset[int], seed: int) -> list[int]:
    """Return an output of a model that picks any token it may, and ends as soon as it can."""
    chance = random.Random(seed)
    output: list[int] = []
    while len(output) < 2000:
        allowed = np.flatnonzero(grammar.allowed(output)).tolist()
        if ends & set(allowed):
            return output
        output.append(chance.choice(allowed))
    raise AssertionError("no end within 2,000 tokens")


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_drawn_conforms(grammars: Grammars, tokenizer: Tokenizer, seed: int) -> None:
    output = draw(make(grammars, PERSON), tokenizer.eos_token_ids, seed)
    person = json.loads(b"".join(map(tokenizer.token_bytes, output)))
    assert set(person) == {"name", "age"}
    assert len(person["name"]) <= 20
    assert person["age"] in range(100)


def test_after_the_last_brace_only_the_end_may_come(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = make(grammars, {"const": {"a": 1}})
    output = [token_id for char in b'{"a":1}' for token_id in [char + 3]]  # as `save_tokenizer` numbers bytes
    assert set(np.flatnonzero(grammar.allowed(output))) == set(tokenizer.eos_token_ids)
    output += tokenizer.eos_token_ids
    assert set(np.flatnonzero(grammar.allowed(output))) == set(tokenizer.eos_token_ids)


def test_a_mask_depends_on_the_output_alone(grammars: Grammars, tokenizer: Tokenizer) -> None:
    output = draw(make(grammars, PERSON), tokenizer.eos_token_ids, seed=9)
    step_by_step = make(grammars, PERSON)
    for end in range(len(output) + 1):
        mask = step_by_step.allowed(output[:end])
        assert np.array_equal(mask, make(grammars, PERSON).allowed(output[:end]))


def test_special_tokens_are_never_part_of_a_text(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = make(grammars, {"type": "string"})
    assert not grammar.allowed([ord('"') + 3])[sorted(tokenizer.special_token_ids)].any()


@pytest.mark.parametrize(
    "schema",
    [
        {"const": "a<|end|>b"},
        {"enum": ["<|end|>", "<|end|>!"]},
        {"type": "string", "pattern": "^<\\|end\\|>b$"},
        {"type": "object", "properties": {"<|end|>": {"const": 1}}, "required": ["<|end|>"]},
    ],
    ids=str,
)
def test_the_name_of_a_special_token_is_spelt(tmp_path: Path, schema: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(str(save_byte_tokenizer(tmp_path)))
    grammars = Grammars(tokenizer)
    try:
        output = draw(make(grammars, schema), tokenizer.eos_token_ids, seed=1)
    finally:
        grammars.close()
    assert not tokenizer.special_token_ids & set(output)
    assert "<|end|>" in str(json.loads(b"".join(map(tokenizer.token_bytes, output))))


def save_byte_tokenizer(directory: Path) -> Path:
    """One that puts nothing in front of a text, as GPT-2's does not: a token for each byte, and one that ends."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<|end|>", special=True)])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return directory


def test_a_model_cannot_fill_its_answer_with_spaces(grammars: Grammars) -> None:
    grammar, output = make(grammars, {"type": "object"}), [ord("{") + 3]
    space = ord(" ") + 3
    while grammar.allowed(output)[space]:
        output.append(space)
        assert len(output) < 50


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "colour"}, "Invalid type: colour"),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"$ref": "http://127.0.0.1/schema"}, "retrieving it failed"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "json_schema: "),
        ({"allOf": [{"anyOf": [{"required": [f"k{i}{j}"]} for j in range(4)]} for i in range(9)]}, "too large"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_with_the_reason(
    grammars: Grammars, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        make(grammars, schema)
    assert str(refused.value).startswith("json_schema: ")
    assert reason in str(refused.value)


def test_a_schema_that_takes_minutes_is_given_up_and_the_next_one_served(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr("backend.text.grammar.SchemaCheck", lambda limits: SchemaCheck(limits, cpu_s=0.1))
    grammars = Grammars(tokenizer)
    assert not grammars.is_checked(json.dumps(SLOW))
    with pytest.raises(InvalidRequestError, match=r"json_schema: takes more than 0\.1 s or 1024 MiB to compile"):
        make(grammars, SLOW)
    monkeypatch.setattr(SchemaCheck, "try_out", lambda *_: pytest.fail("tried again"))
    assert grammars.is_checked(json.dumps(SLOW))
    with pytest.raises(InvalidRequestError, match=r"json_schema: takes more than 0\.1 s or 1024 MiB to compile"):
        make(grammars, SLOW)
    monkeypatch.undo()
    assert make(grammars, PERSON).allowed([])[ord("{") + 3]
    grammars.close()


def test_a_process_that_does_not_answer_is_not_waited_for() -> None:
    check = SchemaCheck({}, cpu_s=60.0, wall_s=0.01)
    assert "to compile" in check.try_out(json.dumps({"grammars": [{"json_schema": SLOW}]})).reason
    assert check._process is None


def test_references_lead_into_a_schema_that_stands_inside_another(grammars: Grammars) -> None:
    inner = {"$ref": "#/anyOf/0/properties/arguments/$defs/C", "$defs": {"C": {"const": 7}}}
    grammar = make(grammars, {"anyOf": [{"type": "object", "properties": {"arguments": inner}}]})
    output = [char + 3 for char in b'{"arguments":']
    assert grammar.allowed(output)[ord("7") + 3]
    assert not grammar.allowed(output)[ord("8") + 3]


DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    "schema",
    [
        *(
            {key: place, "type": "integer", "default": {"type": "string"}}
            for key in ("$id", "id", "$anchor", "$dynamicAnchor")
            for place in ("#/default", "/default", "default", "http://a/b#/default")
        ),
        {"$id": "#/$defs/a", "type": "integer", "$defs": {"a": {"const": "a"}}},
        {"$ref": "#/$defs/a", "$defs": {"$id": "#/title", "a": {"type": "integer"}}, "title": "a"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$schema": DRAFT_4, "id": "#/default", "type": "integer"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$id": "http://a/b", "id": "c", "type": "integer"}}},
        {"$ref": "#/components/schemas/a", "components": {"id": "c", "schemas": {"a": {"type": "integer"}}}},
        {"$ref": "#/$defs/a%20b~1~01", "$defs": {"a b/~1": {"type": "integer"}, "a b/": {"type": "string"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [True]}}, "type": "integer"},
        {"type": "integer", "nullable": True, "deprecated": True, "$comment": "c", "example": {"id": "e", "$ref": "f"}},
        {
            "type": "integer",
            "x-a": {"id": "e", "$ref": "#/b"},
            "examples": [{"$schema": "c"}],
            "$vocabulary": {"a": True},
        },
    ],
    ids=str,
)
def test_no_word_beside_a_schema_leads_to_another(grammars: Grammars, schema: dict[str, Any]) -> None:
    """With `"$id": "#/default"` the library followed the default, at which no check had looked as at a schema."""
    for draft in (None, DRAFT_4, DRAFT_7, DRAFT_2020):
        text = as_json_schema("json_schema", json.dumps(schema | ({"$schema": draft} if draft else {})))
        grammar = grammars.grammar(text, PriorityClass.REAL_TIME)
        assert follows(grammar, b"5")
        assert not follows(grammar, b'"')


@pytest.mark.parametrize("key", ["$dynamicRef", "$recursiveRef"])
@pytest.mark.parametrize("draft", [{}, {"$schema": DRAFT_2020}], ids=str)
def test_references_that_no_check_follows_are_refused(grammars: Grammars, key: str, draft: dict[str, Any]) -> None:
    schema = {**draft, key: "#/default", "type": "integer", "default": {"type": "string"}}
    with pytest.raises(InvalidRequestError, match=rf'json_schema: Unimplemented keys: \["\{key}"\]'):
        make(grammars, schema)


@pytest.mark.parametrize("schema", [{}, {"additionalProperties": False, "patternProperties": {"^b": {}}}], ids=str)
def test_no_escape_spells_the_name_of_another_property(grammars: Grammars, schema: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b\n": {"const": 1}}, "required": ["a"], **schema}
    assert follows(make(grammars, schema), b'{"a":1,"b":"x"}')
    assert follows(make(grammars, schema), b'{"a":1,"b\\n":1}')
    for name in (b"\\u0061", b"b\\u000a", b"\\u0062"):
        assert not follows(make(grammars, schema), b'{"a":1,"%s":"x"}' % name)


def test_a_text_may_hold_whatever_has_a_spelling_of_its_own(grammars: Grammars) -> None:
    assert follows(make(grammars, {"type": "string"}), '"a\\n\\t\\"\\\\é😀"'.encode())


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ('^[^"]*$', ["", "ab", "\\", "\n"], ['"', 'a"b']),
        ('^[^",]+$', ["ab", "\\"], ['"', 'a"b', "a,"]),
        (r"^[^\\]*$", ["ab", '"', "\n"], ["\\", "a\\b"]),
        (r'^[^\n"\\]*$', ["ab"], ['"', "\\", "\n"]),
        (r"^\P{L}$", ["1", '"', "\\", "\n"], ["a", "é"]),
        (r"^[\p{Cc}a]*$", ["a\n"], ['"', "\\", "b"]),
        ("^.$", ["a", '"', "\\", "é", "😀"], ["\n", "\r", "\u2028", "\u2029", "ab"]),
        (r"^\s$", [" ", "\n", "\ufeff", "\u2003"], ["\x85", "a"]),
        (r"^\S$", ["a", "\x85", '"'], [" ", "\ufeff", "\u2003"]),
        (r"^\w$", ["a", "_", "7"], ["é", "-"]),
        ("^[[a]$", ["[", "a"], ["]"]),
        ("^[a&&b]$", ["a", "&", "b"], ["a&"]),
        ("^[+--]$", ["+", ",", "-"], ["."]),
    ],
)
def test_patterns_are_read_as_json_schema_does(
    grammars: Grammars, tokenizer: Tokenizer, pattern: str, right: list[str], wrong: list[str]
) -> None:
    schema = {"type": "string", "pattern": pattern}
    taken = [is_taken(make(grammars, schema), tokenizer, text) for text in right + wrong]
    assert taken == [True] * len(right) + [False] * len(wrong)


def test_names_follow_their_patterns(grammars: Grammars) -> None:
    schema = {"type": "object", "patternProperties": {'^[^"]*$': {"const": 1}}, "additionalProperties": False}
    assert follows(make(grammars, schema), b'{"a\\n":1}')
    assert not follows(make(grammars, schema), b'{"a\\"b":1}')


@pytest.fixture
def small(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grammars]:
    """Grammars whose lexers are soon full."""
    monkeypatch.setattr(grammar, "_LIMITS", grammar._LIMITS | {"max_lexer_states": 2_000})
    grammars = Grammars(tokenizer)
    yield grammars
    grammars.close()


GROWING = {"type": "string", "pattern": "^[ab]*a[ab]{30}$"}  # each text takes states: a small lexer holds some 1,000


def make_text(seed: int, num: int) -> list[int]:
    """Return the beginning of an answer that GROWING lets through, of `num` characters."""
    return [ord('"') + 3, *(ord(char) + 3 for char in random.Random(seed).choices("ab", k=num))]


def fill(grammars: Grammars) -> None:
    """Let two requests fill the lexer that they share."""
    first, second = make(grammars, GROWING), make(grammars, GROWING)
    follows_to_the_end(first, make_text(1, 600))
    with pytest.raises(OverloadedError, match="together filled what it may take"):
        follows_to_the_end(second, make_text(2, 600))


def test_requests_that_fill_a_shared_lexer_hurt_nobody_for_good(small: Grammars) -> None:
    """All requests with a schema share its lexer, to which each adds states. Full, it failed every later request."""
    other, text = make(small, GROWING), make_text(0, 600)
    assert other.allowed(text[:5]).any()
    fill(small)
    with pytest.raises(OverloadedError, match="together filled what it may take"):
        follows_to_the_end(other, text)
    follows_to_the_end(make(small, GROWING), text)


def test_what_works_alone_works_for_each_of_many_in_the_end(small: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of a batch filled one lexer after the other together, and were all refused or put off for a day."""
    monkeypatch.setattr(grammar, "MAX_OWN_BYTES", 8 * grammar.FULL_LEXER_BYTES)
    left = {seed: make_text(seed, 600) for seed in range(20)}
    num_left: list[int] = []
    while left and len(num_left) < 10:
        for seed in answered(small, left):
            del left[seed]
        num_left.append(len(left))
    assert num_left == [20, 12, 4, 0]


def answered(grammars: Grammars, texts: Mapping[int, list[int]]) -> list[int]:
    """Follow the texts at one time, a token each in turn; return which are followed to their end."""
    begun = {}
    for name in texts:
        with suppress(OverloadedError):
            begun[name] = make(grammars, GROWING)
    for end in range(max(map(len, texts.values()))):
        for name, each in list(begun.items()):
            try:
                each.allowed(texts[name][:end])
            except OverloadedError:
                del begun[name]
    return list(begun)


def test_schemas_that_requests_cannot_share_leave_the_others_their_room(
    small: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is counted with a full lexer. The other class and other schemas have bounds of their own."""
    monkeypatch.setattr(grammar, "MAX_OWN_BYTES", grammar.FULL_LEXER_BYTES)
    monkeypatch.setattr(grammar, "MAX_COMPILED_BYTES", 1_000_000)
    fill(small)
    held = make(small, GROWING)
    with pytest.raises(OverloadedError, match=r"unshared compiled schemas of class rt take \d+ bytes; the limit for"):
        make(small, GROWING)
    assert make(small, PERSON).allowed([]).any()
    assert small.grammar(json.dumps(GROWING), PriorityClass.BEST_EFFORT).allowed([]).any()
    del held
    assert make(small, GROWING).allowed([]).any()


def test_a_schema_that_is_too_large_alone_is_refused_and_refuses_no_other(small: Grammars) -> None:
    """One client's long answers refused the schema to all for a minute."""
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="take too many states or expressions to follow"):
            follows_to_the_end(make(small, GROWING), make_text(3, 1_500))
        follows_to_the_end(make(small, GROWING), make_text(4, 600))


def test_where_memory_is_short_who_takes_more_with_each_token_ends(
    small: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 requests, each with a hungry schema of its own, took 2.8 GB, of which 7 MB were counted."""
    hungry, modest = make(small, GROWING), make(small, PERSON)
    in_use, each_look = [0], [0]

    def look() -> int:
        in_use[0] += each_look[0]
        return in_use[0]

    monkeypatch.setattr(small._memory, "bytes_in_use", look)
    monkeypatch.setattr(small._memory, "is_short", lambda: True)
    text = make_text(5, 600)
    for end in range(2 * grammar.NUM_HUNGRY_TOKENS):
        assert hungry.allowed(text[:end]).any()
    each_look[0] = grammar.HUNGRY_BYTES + 1
    for _ in range(grammar.NUM_HUNGRY_TOKENS - 1):
        assert hungry.allowed(text[:end]).any()
    with pytest.raises(OverloadedError, match="each token takes memory to follow"):
        hungry.allowed(text[:end])
    assert modest.allowed([]).any()


def test_a_schema_that_is_compiled_for_each_request_is_tried_once(
    small: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a trial may take too long by chance, and the schema counts as refused for a minute."""
    fill(small)
    monkeypatch.setattr(SchemaCheck, "try_out", lambda *_: pytest.fail("tried again"))
    assert make(small, GROWING).allowed([]).any()


def follows_to_the_end(grammar: Grammar, output: list[int]) -> None:
    for end in range(len(output)):
        grammar.allowed(output[:end])


def test_a_string_of_thousands_of_characters_is_followed_to_its_end(grammars: Grammars, tokenizer: Tokenizer) -> None:
    text = [char + 3 for char in b'"' + b"ab" * 2_000]
    grammar = make(grammars, {"type": "string", "maxLength": 4_000})
    follows_to_the_end(grammar, text)
    assert not grammar.allowed(text)[ord("a") + 3]
    assert grammar.allowed([*text, ord('"') + 3])[sorted(tokenizer.eos_token_ids)].all()


def test_a_row_that_nothing_may_follow_says_so(grammars: Grammars) -> None:
    grammar = make(grammars, PERSON)
    with pytest.raises(InvalidRequestError, match="json_schema: "):
        grammar.allowed([ord("x") + 3])


class PanicException(BaseException):  # each Rust library has one of this name
    """As the library raises where it panics, which no text is known to make it do."""


def panic(*_: object, **__: object) -> None:
    raise PanicException("index out of bounds")


def test_a_panic_of_the_library_is_an_error_of_one_schema(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no Exception: the thread that compiles for many ended by it."""
    schema = {"const": "panic"}
    with monkeypatch.context() as patched:
        patched.setattr(grammars._library, "LLMatcher", SimpleNamespace(grammar_from_json_schema=panic))
        with pytest.raises(BrosError, match="llguidance panicked: index out of bounds"):
            make(grammars, schema)
    assert make(grammars, schema).allowed([]).any()


@pytest.mark.parametrize("call", ["consume_token", "compute_bitmask"])
def test_a_panic_of_the_library_is_an_error_of_one_request(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is no Exception: the thread that steps the engine ended by it."""
    grammar, other = make(grammars, PERSON), make(grammars, PERSON)
    monkeypatch.setattr(grammar, "_matcher", SimpleNamespace(**{"consume_token": lambda _: 0, call: panic}))
    with pytest.raises(BrosError, match="llguidance panicked: index out of bounds"):
        grammar.allowed([ord("{") + 3])
    assert other.allowed([ord("{") + 3]).any()
