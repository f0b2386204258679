"""docs/openai.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from front.conformance import table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openai.md"


def test_the_table_of_fields_is_the_codes_own() -> None:
    """Where it is not: `python -m front.conformance` prints it."""
    assert table() in DOCUMENT.read_text()
