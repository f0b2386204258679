"""Verdicts on schemas: the latest stay, and refusals for a minute only."""

from __future__ import annotations

from backend.text.schema_memory import MAX_KEPT_CHARS, MAX_KEPT_SCHEMAS, REFUSAL_KEPT_S, SchemaMemory, Verdict

GOOD, BAD = Verdict(object()), Verdict(None, "takes too long")


def test_a_verdict_is_found_again() -> None:
    memory = SchemaMemory()
    memory.keep("good", GOOD)
    memory.keep("bad", BAD)
    assert (memory.find("good"), memory.find("bad"), memory.find("other")) == (GOOD, BAD, None)


def test_a_refusal_is_forgotten_after_a_while_and_a_good_schema_is_not() -> None:
    time_s = [0.0]
    memory = SchemaMemory(lambda: time_s[0])
    memory.keep("good", GOOD)
    memory.keep("bad", BAD)
    time_s[0] = REFUSAL_KEPT_S - 1
    assert memory.find("bad") == BAD
    time_s[0] = REFUSAL_KEPT_S
    assert (memory.find("good"), memory.find("bad")) == (GOOD, None)


def test_bad_schemas_drive_out_no_good_one() -> None:
    memory = SchemaMemory()
    memory.keep("good", GOOD)
    for index in range(MAX_KEPT_SCHEMAS + 1):
        memory.keep(str(index), BAD)
    assert (memory.find("good"), memory.find("0"), memory.find("1")) == (GOOD, None, BAD)


def test_the_schema_that_was_used_last_stays() -> None:
    memory = SchemaMemory()
    for index in range(MAX_KEPT_SCHEMAS):
        memory.keep(str(index), GOOD)
    assert memory.find("0") == GOOD
    memory.keep("new", GOOD)
    assert (memory.find("0"), memory.find("1")) == (GOOD, None)


def test_long_schemas_drive_out_the_oldest() -> None:
    """Compiled, each takes memory by its length."""
    memory = SchemaMemory()
    names = [str(index) * (MAX_KEPT_CHARS // 4) for index in range(5)]
    for name in names:
        memory.keep(name, GOOD)
        memory.keep(name, GOOD)  # two requests may come at once
    assert [memory.find(name) for name in names] == [None, GOOD, GOOD, GOOD, GOOD]
    memory.keep("x" * (MAX_KEPT_CHARS + 1), GOOD)
    assert memory.find("x" * (MAX_KEPT_CHARS + 1)) is None
