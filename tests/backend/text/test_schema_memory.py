"""Verdicts on schemas: the latest stay, and refusals for a minute only."""

from __future__ import annotations

import gc

from backend.core.request import PriorityClass
from backend.text.schema_memory import (
    LOOK_S,
    MAX_GROWN_BYTES,
    MAX_KEPT_BYTES,
    MAX_KEPT_SCHEMAS,
    NUM_FORGOTTEN,
    NUM_LOOKS_IN_VAIN,
    REFUSAL_KEPT_S,
    UNSHARED_S,
    Compiled,
    CompiledBytes,
    SchemaMemory,
    Verdict,
)

GOOD, BAD = Verdict(Compiled(None, 1000)), Verdict(None, "takes too long")


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


def test_large_schemas_drive_out_the_oldest() -> None:
    """However short their text: `multipleOf` 9,973 compiles to 5 MB."""
    memory, large = SchemaMemory(), Verdict(Compiled(None, MAX_KEPT_BYTES // 4))
    for name in "abcde":
        memory.keep(name, large)
        memory.keep(name, large)  # two requests may come at once
    assert [memory.find(name) for name in "abcde"] == [None, large, large, large, large]
    memory.keep("too large", Verdict(Compiled(None, MAX_KEPT_BYTES + 1)))
    assert memory.find("too large") is None


def test_a_schema_that_has_filled_its_lexer_is_shared_no_more() -> None:
    memory = SchemaMemory()
    memory.keep("a", GOOD)
    assert memory.own_bytes("a") is None
    memory.share_no_more("a", num_bytes=1000)
    memory.keep("a", GOOD)
    assert (memory.find("a"), memory.own_bytes("a")) == (None, 1000)


def test_of_schemas_that_are_shared_no_more_the_ones_used_last_are_known() -> None:
    memory = SchemaMemory()
    names = [str(index) for index in range(MAX_KEPT_SCHEMAS)]
    for name in names:
        memory.share_no_more(name, 1)
    memory.share_no_more("0", 1)
    memory.keep("1", GOOD)
    for name in ("new", "newer"):
        memory.share_no_more(name, 1)
    known = [name for name in (*names, "new", "newer") if memory.own_bytes(name) is not None]
    assert known == [name for name in (*names, "new", "newer") if name not in ("2", "3")]


def test_where_the_process_has_grown_the_most_followed_go() -> None:
    """Requests add states to a schema that is kept. 256 of those took 15 GB at the worst."""
    time_s, in_use = [0.0], [5_000]
    memory = SchemaMemory(lambda: time_s[0], lambda: in_use[0])
    names = [str(index) for index in range(NUM_FORGOTTEN + 2)]
    for index, name in enumerate(names):
        memory.keep(name, Verdict(Compiled(None, 1, num_followed=-index)))

    def left_after_a_look() -> list[str]:
        time_s[0] += LOOK_S
        memory.find("")
        return list(memory._good)

    assert left_after_a_look() == names
    in_use[0] += MAX_GROWN_BYTES
    assert left_after_a_look() == names
    in_use[0] += 1
    memory.find("")
    assert list(memory._good) == names, "looked before its time"
    for name in reversed(names):  # in use now, and as followed as before
        assert memory.find(name) is not None
    assert left_after_a_look() == names[:-3:-1]
    memory.keep("new", GOOD)
    assert left_after_a_look() == ["new"], "a schema of later is no part of that growth"
    for name in names:  # something else has grown, then
        memory.keep(name, GOOD)
    assert left_after_a_look() == ["new", *names]


def test_this_process_is_short_of_memory_until_it_has_tried_in_vain_for_long_to_forget() -> None:
    time_s, in_use = [0.0], [0]
    memory = SchemaMemory(lambda: time_s[0], lambda: in_use[0])
    assert not memory.is_short()
    in_use[0] = MAX_GROWN_BYTES + 1
    assert not memory.is_short(), "looked before its time"
    found = []
    for _ in range(NUM_LOOKS_IN_VAIN + 2):
        time_s[0] += LOOK_S
        found.append(memory.is_short())
    assert found == [True] * NUM_LOOKS_IN_VAIN + [False] * 2
    in_use[0] *= 2
    time_s[0] += LOOK_S
    assert memory.is_short(), "another growth of as much"
    in_use[0] = 0
    time_s[0] += LOOK_S
    assert not memory.is_short()


def test_a_schema_is_shared_again_after_a_while() -> None:
    time_s = [0.0]
    memory = SchemaMemory(lambda: time_s[0])
    memory.share_no_more("a", 7)
    memory.keep("a", GOOD)
    assert (memory.own_bytes("a"), memory.find("a")) == (7, None)
    time_s[0] = UNSHARED_S
    memory.keep("a", GOOD)
    assert (memory.own_bytes("a"), memory.find("a")) == (None, GOOD)


def test_what_was_to_go_in_a_growth_that_is_over_is_no_more_to_go() -> None:
    time_s, in_use = [0.0], [0]
    memory = SchemaMemory(lambda: time_s[0], lambda: in_use[0])
    compiled = {str(index): Compiled(None, 1) for index in range(2 * NUM_FORGOTTEN + 1)}
    for name, each in compiled.items():
        memory.keep(name, Verdict(each))

    def look(bytes_in_use: int) -> None:
        time_s[0], in_use[0] = time_s[0] + LOOK_S, bytes_in_use
        memory.find("")

    for bytes_in_use in (5_000, 5_001 + MAX_GROWN_BYTES, 5_000):
        look(bytes_in_use)
    left = list(memory._good)
    assert len(left) == NUM_FORGOTTEN + 1
    for name in left[:-1]:
        compiled[name].num_followed = 1
    look(5_001 + MAX_GROWN_BYTES)
    assert list(memory._good) == left[-1:], "the order is that of the growth before"


def test_a_compiled_schema_counts_until_nobody_holds_it() -> None:
    held, other = Compiled(None, 100, grown_bytes=400), Compiled(None, 70)
    compiled_bytes = CompiledBytes()
    compiled_bytes.add(held, PriorityClass.BEST_EFFORT)
    compiled_bytes.add(other, PriorityClass.REAL_TIME)
    assert [compiled_bytes.of(each) for each in PriorityClass] == [70, 500]
    del held
    gc.collect()
    assert [compiled_bytes.of(each) for each in PriorityClass] == [70, 0]
