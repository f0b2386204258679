"""Words of others on a terminal: none of them is obeyed."""

from __future__ import annotations

from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console

from client.terminal import for_output, printable
from client.top.history import Frame, History
from client.top.view import render
from client.transports.fake import FAKE_SNAPSHOT

TITLE = "\x1b]0;mine\x1b\\"


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", ["\x1b[2J", TITLE, "\x9b2J", "\x07", "\x08\x08", "a\rb", "\x7f"])
def test_a_terminal_obeys_none_of_it(text: str) -> None:
    shown = for_output(text, Screen())
    assert len(shown) == len(text)
    assert not any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 for each in shown)
    assert for_output(text, StringIO()) == text, "a file gets what came"


def test_text_of_any_language_stays() -> None:
    text = "Grüße,\t日本\n👩‍👩‍👧\n\N{NO-BREAK SPACE}»a«"
    assert printable(text) == text


@pytest.mark.parametrize("request_id", [TITLE, "[red]a[/]", "[/red]", "a\nb"])
def test_an_id_in_the_panel_is_words_only(request_id: str) -> None:
    view = replace(FAKE_SNAPSHOT.requests[0], request_id=request_id)
    history = History()
    history.add(Frame(0.0, replace(FAKE_SNAPSHOT, requests=[view]), None, None))
    console = Console(file=StringIO(), force_terminal=True, width=160, height=50)
    console.print(render(history, 160, 50))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b]" not in written
    assert printable(request_id[:10]).replace("\n", " ") in written
