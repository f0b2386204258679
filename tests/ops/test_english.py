"""Documents, docstrings, comments and the changelog's newest section are plain: short sentences, the field's terms."""

from __future__ import annotations

import pytest

from tests.ops.documents import PROSE, ROOT
from tests.ops.english import banned_phrases, long_sentences, messages_of, prose_of, sentences

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
UNRELEASED = CHANGELOG.partition("## Unreleased")[2].partition("\n## ")[0]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PROSE}
TEXTS["CHANGELOG.md"] = UNRELEASED

# Folders whose docstrings and comments are plain, too: all that hold Python.
FOLDERS = (
    "backend",
    "bench",
    "client",
    "deploy",
    "examples",
    "front",
    "kv",
    "model_repository",
    "requirements",
    "tests",
    "tools",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_comments_are_plain(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {words}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in prose_of(path.read_text())
        for words in (*long_sentences(text), *banned_phrases(text))
    ]
    assert found == []


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "tests"])
def test_messages_have_no_banned_phrase(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {words}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in messages_of(path.read_text())
        for words in banned_phrases(text)
    ]
    assert found == []


def test_messages_of_source_are_its_strings_of_several_words() -> None:
    source = '"""A docstring of four words."""\nx = "key"\nraise E(f"no room for {x}")\ny = "one two three four"\n'
    assert list(messages_of(source)) == ["one two three four", "no room for `code`"]


def test_prose_of_source_is_its_docstrings_and_its_runs_of_comments() -> None:
    source = '"""One."""\nx = 1  # two\n# three\n# four\n\n\ndef f():\n    """Five."""\n'
    assert list(prose_of(source)) == ["One.\n", "Five.\n", "two", "three four"]


@pytest.mark.parametrize("name", TEXTS)
def test_no_sentence_is_longer_than_25_words(name: str) -> None:
    assert long_sentences(TEXTS[name]) == []


@pytest.mark.parametrize("name", TEXTS)
def test_no_phrase_is_banned(name: str) -> None:
    assert banned_phrases(TEXTS[name]) == []


def test_prose_is_split_at_items_and_full_stops() -> None:
    text = "# Title\n\nOne `a. b` two. Three\nfour.\n\n- item [a link](x.md)\n- other\n\n| a. b |\n\n    code. code\n"
    assert list(sentences(text)) == ["One `code` two.", "Three four.", "item a link", "other"]


@pytest.mark.parametrize(("num", "is_long"), [(25, False), (26, True)])
def test_a_sentence_of_26_words_is_long(num: int, is_long: bool) -> None:
    assert bool(long_sentences(" ".join(["word"] * num) + ".")) is is_long


@pytest.mark.parametrize(
    ("text", "is_banned"), [("so\nmuch of it", True), ("| lest |", True), ("`lest`", False), ("the least", False)]
)
def test_a_banned_phrase_is_found_across_lines_and_in_tables_but_not_in_code(text: str, is_banned: bool) -> None:
    assert bool(banned_phrases(text)) is is_banned
