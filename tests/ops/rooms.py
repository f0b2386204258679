"""The picture and the table of the rooms in docs/architecture.md, from the rules of `tests/test_import_order.py`.

python -m tests.ops.rooms      write them anew

A room says in the first line of its own docstring what it contains. A room stands one floor above the highest room
that it may import.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from tests.ops.documents import ROOT
from tests.test_import_order import MAY_IMPORT, is_within, modules

DOCUMENT = ROOT / "docs" / "architecture.md"
START, END = "<!-- rooms: python -m tests.ops.rooms -->", "<!-- end of rooms -->"


def room_of(name: str) -> str:
    """Return the room of a module."""
    return max((room for room in MAY_IMPORT if is_within(name, room)), key=len)


@cache
def own_rooms() -> frozenset[str]:
    """Return the rooms that contain a module, other than a package's docstring."""
    return frozenset(room_of(name) for name, path in modules() if path.name != "__init__.py")


def rooms() -> list[str]:
    """Return the rooms, the lowest floor first."""
    return sorted(own_rooms(), key=lambda room: (floors()[room], room))


def imported_rooms(room: str) -> set[str]:
    """Return every room that modules of `room` may import, without `room` itself."""
    allowed = {*MAY_IMPORT[room], room}
    within = {name: {each for each in own_rooms() if is_within(each, name)} for name in allowed}
    return {each for name, found in within.items() for each in found or {room_of(name)}} - {room}


@cache
def floors() -> dict[str, int]:
    """Return the floor of each room. Raises CycleError where rooms may import each other."""
    found: dict[str, int] = {}
    for room in TopologicalSorter({room: imported_rooms(room) for room in own_rooms()}).static_order():
        found[room] = 1 + max((found[each] for each in imported_rooms(room)), default=0)
    return found


def content_of(room: str) -> str:
    """Return the first sentence of the room's docstring."""
    base = ROOT / room.replace(".", "/")
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{path.relative_to(ROOT)}: the room has no docstring"
    return text.split("\n\n")[0].replace("\n", " ")


def picture() -> str:
    """Return the floors as text, the highest first."""
    by_floor: dict[int, list[str]] = {}
    for room in rooms():
        by_floor.setdefault(floors()[room], []).append(f"[ {room} ]")
    return "\n".join(f"    {floor:>2}  {'  '.join(boxes)}" for floor, boxes in sorted(by_floor.items(), reverse=True))


def table() -> str:
    """Return a row per room: its purpose, and the rooms that it may import."""
    lines = ["| room | contents | may import |", "|---|---|---|"]
    for room in rooms():
        allowed = ", ".join(f"`{name}`" for name in sorted(MAY_IMPORT[room] - {room})) or "nothing"
        lines.append(f"| `{room}` | {content_of(room)} | {allowed} |")
    return "\n".join(lines)


def rendered(text: str) -> str:
    """Return the document with the generated part written anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{picture()}\n\n{table()}\n\n{END}{after}"


def main(document: Path = DOCUMENT) -> int:
    """Write the generated part; return the exit status."""
    document.write_text(rendered(document.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
