"""Patterns of ECMA 262 in Rust's words. What the library makes of them is in tests/backend/text/test_grammar.py."""

from __future__ import annotations

import pytest

from backend.wire.pattern import PatternError, rust_pattern


@pytest.mark.parametrize(
    ("pattern", "rust"),
    [
        ("", ""),
        ("^[a-z]+$", "^[a-z]+$"),
        ("^(a|b){2,}?c{3}$", "^(?:a|b){2,}?c{3}$"),
        ("(?:a)(?<year>b)(?P<day>c)", "(?:a)(?:b)(?:c)"),
        (r"\d\D", r"[0-9][^0-9\x00]"),
        ('[^"]', r"[^\x{22}\x00]"),
        ("[[a&&b]", r"[\x{5b}a\x{26}\x{26}b]"),
        ("[a-z--]", r"[a-z\x{2d}\x{2d}]"),
        ("[+--]", r"[\x{2b}-\x{2d}]"),
        (r"[\]\b\-]", r"[\x{5d}\x{8}\x{2d}]"),
        (r"[\0-\x1f]", r"[\x{1}-\x{1f}]"),
        (r"[^\P{L}]", r"[^[\P{L}&&[^\x00]]\x00]"),
        ("]}<-", r"\x{5d}\x{7d}<-"),
        (r"\u0061\u{62}\x63\cJ", r"abc\x{a}"),
        (r"[\ud83d\ude00-😂]", "[\\x{1f600}-\\x{1f602}]"),
        (r"\\ud83d", r"\x{5c}ud83d"),
        ("é", r"\x{e9}"),
    ],
)
def test_a_pattern_is_said_in_other_words(pattern: str, rust: str) -> None:
    assert rust_pattern(pattern) == rust


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        *(
            (text, f"{part!r} there is not supported")
            for text, part in (
                (r"\Aa", r"\A"),
                (r"a\z", r"\z"),
                (r"\bx", r"\b"),
                (r"\x{41}", r"\x"),
                (r"\pLx", r"\p"),
                (r"(a)\1", r"\1"),
                ("(?i)a", "(?i"),
                ("(?i:a)", "(?i"),
                ("a(?=b)", "(?="),
                ("(?!b)", "(?!"),
                ("(?<=b)", "(?<"),
                ("a{,2}", "{"),
                ("[", "["),
                ("[^]", "[^]"),
                ("[]a]", "[]"),
                (r"[\01]", r"\01"),
                (r"\00", r"\00"),
                ("a\\", "\\"),
            )
        ),
        ("a**", "'*' repeats nothing"),
        ("^*", "'*' repeats nothing"),
        ("(+a)", "'+' repeats nothing"),
        ("[z-a]", "'[z-a]' has a range out of order"),
        (r"[\w-a]", r"\w- there is not supported"),
        (r"\ud83d", "is no character"),
        (r"\u{110000}", "is no character"),
        *(
            (text, "that no answer has")
            for text in (
                "a\x01",
                r"a\x01",
                r"\u001Fab",
                r"\u{7}",
                r"\\\v",
                r"[\x7F]",
                "[\0]",
                r"\cA",
                "\0",
                r"[\x00-\x07\v]",
            )
        ),
    ],
)
def test_what_has_no_counterpart_is_named(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError) as refused:
        rust_pattern(pattern)
    assert reason in str(refused.value)


@pytest.mark.parametrize("piece", [r"\x41", r"\ud83d\ude00", r"\p{L", "(?<a", "{1,"])
def test_a_pattern_is_read_in_one_pass(piece: str) -> None:
    """All ways to read a class without an end took twice as long with each member, with 128 of them for good."""
    with pytest.raises(PatternError):
        rust_pattern("[" + piece * (500 // len(piece)))
    with pytest.raises(PatternError):
        rust_pattern("(" + piece * (500 // len(piece)) + "[")
