"""How loops are compiled."""

from __future__ import annotations

from collections.abc import Callable

from kv.compiled import compiled


def test_a_function_that_cannot_be_kept_on_disk_is_compiled_all_the_same() -> None:
    """Numba finds no directory for a function that stands in no file, as for one in a read-only container."""
    names: dict[str, Callable[[int], int]] = {}
    exec("def double(number):\n    return 2 * number", names)
    double = compiled("int64(int64)")(names["double"])
    assert double(21) == 42
    assert hasattr(double, "signatures"), "it was not compiled"
