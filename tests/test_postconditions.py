"""Every test says what must hold: it asserts, expects an error, or calls a helper of the tests that does."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent
CHECKS = {"raises", "warns", "check_invariants", "fail", "validate", "run_state_machine_as_test"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> dict[tuple[Path, str], Function]:
    """Return every function of the tests, by file and name."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(TESTS.rglob("*.py"))}
    return {
        (path.relative_to(TESTS), node.name): node
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }


def has_check(function: Function, checking: set[str]) -> bool:
    """Whether `function` asserts, or calls a function whose name is in `checking`."""
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and called_name(node) in checking)
        for node in ast.walk(function)
    )


def called_name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def checking_names(found: dict[tuple[Path, str], Function]) -> set[str]:
    """Return the names of helpers that check, directly or through others."""
    checking = set(CHECKS)
    while True:
        more = {name for (_, name), function in found.items() if has_check(function, checking)} - checking
        if not more:
            return checking
        checking |= more


def test_every_test_has_a_postcondition() -> None:
    found = functions()
    checking = checking_names(found)
    tests = {key: function for key, function in found.items() if key[1].startswith("test_")}
    assert len(tests) > 900
    without = [
        f"{path}:{function.lineno} {name}"
        for (path, name), function in tests.items()
        if not has_check(function, checking)
    ]
    assert not without, without


def test_a_test_without_one_would_be_found() -> None:
    (node,) = ast.parse("def test_nothing() -> None:\n    print(1)\n").body
    assert isinstance(node, Function)
    assert not has_check(node, checking_names(functions()))
