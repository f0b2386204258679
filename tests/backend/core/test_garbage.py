"""Full collections of garbage are rare; young cycles are found all the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from backend.core.garbage import collect_rarely

OPEN = 300_000  # objects, as thousands of open streams have


class Cycle:
    """An object that holds itself: no reference count frees it."""

    def __init__(self) -> None:
        self.myself = self


@pytest.fixture
def full() -> Iterator[list[int]]:
    """The full collections so far, by the number of objects they freed. Python's own habits come back at the end."""
    before, numbers = gc.get_threshold(), []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            numbers.append(info["collected"])

    gc.callbacks.append(note)
    yield numbers
    gc.callbacks.remove(note)
    gc.set_threshold(*before)
    gc.unfreeze()


def test_python_itself_collects_everything_while_objects_grow_in_number(full: list[int]) -> None:
    gc.freeze()
    gc.collect()  # a full collection also waits until a quarter has been added to what the last one left
    full.clear()
    held = [[] for _ in range(OPEN)]
    assert len(held) == OPEN
    assert full, "then there is nothing to make rare"


def test_objects_that_grow_in_number_are_not_all_collected(full: list[int]) -> None:
    collect_rarely()
    full.clear()
    held = [[] for _ in range(OPEN)]
    assert len(held) == OPEN
    assert full == []


def test_young_cycles_are_freed(full: list[int]) -> None:
    collect_rarely()
    full.clear()
    cycle = weakref.ref(Cycle())
    held = [[] for _ in range(OPEN // 10)]
    assert cycle() is None, f"not found in {len(held)} objects"
    assert full == []
