"""docs/architecture.md names functions that exist, and draws the rooms that the import test enforces."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter

import pytest

from tests.ops.documents import ROOT
from tests.ops.rooms import DOCUMENT, imported_rooms, own_rooms, rendered

TEXT = DOCUMENT.read_text()
LIFE = TEXT.partition("## The life of a request")[2].partition("\n## ")[0]
STEPS = [" ".join(step.split()) for step in re.findall(r"^\d+\. .*(?:\n   .*)*", LIFE, re.MULTILINE)]
GUIDES = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
NAMED = re.findall(r"`([\w.]+)`(?: \([^)]*\))?,? in `([\w/]+\.py)`", " ".join("\n".join([LIFE, *GUIDES]).split()))


def definitions(path: str) -> set[str]:
    """Return the functions, classes and constants of a module, methods as `Class.method`."""
    tree = ast.parse((ROOT / path).read_text())
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, named)]
    methods = {
        f"{owner.name}.{node.name}"
        for owner in top
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, named)
    }
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return methods | constants | {node.name for node in top}


def test_the_document_draws_the_rooms_as_they_are() -> None:
    assert rendered(TEXT) == TEXT, "run python -m tests.ops.rooms"


def test_no_room_imports_upwards() -> None:
    rooms = set(own_rooms())
    assert set(TopologicalSorter({room: imported_rooms(room) for room in rooms}).static_order()) >= rooms


def test_a_name_that_covers_several_rooms_allows_each_of_them() -> None:
    assert {"backend.policy.bros", "backend.policy.state", "backend.core"} <= imported_rooms("backend.executors.trtllm")


def test_the_life_of_a_request_comes_first_and_every_step_names_a_function_and_a_file() -> None:
    assert TEXT.index("## The life of a request") == TEXT.index("\n## ") + 1
    assert len(STEPS) >= 12
    assert [step for step in STEPS if not re.search(r"` in `[\w/]+\.py`", step)] == []


@pytest.mark.parametrize(("name", "path"), NAMED)
def test_a_named_function_is_in_the_named_file(name: str, path: str) -> None:
    assert name in definitions(path)
