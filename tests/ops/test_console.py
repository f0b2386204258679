"""What `bros-serve` tells while it starts, where nobody sees a spinner."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from backend.launcher.endpoints import Endpoints
from backend.launcher.launch import Launch
from backend.launcher.serve import ConsoleReport, LastingConsole
from backend.launcher.triton_install import TritonInstall


def make_report(is_terminal: bool, console: Console | None = None) -> tuple[ConsoleReport, io.StringIO]:
    words = io.StringIO()
    at = Endpoints("127.0.0.1", 1, 2, 3)
    launch = Launch(Path("/run"), Path("/log"), TritonInstall(Path("/bin/true")), at, 1.0, 1.0)
    console = console or Console(file=words, force_terminal=is_terminal)
    return ConsoleReport(console, launch, prints_json=False), words


def test_each_stage_is_a_line_once() -> None:
    report, words = make_report(is_terminal=False)
    for what in (
        "engine: loading 10%",
        "engine: loading 20% · Triton: starting",
        "engine: warming up",
        "engine: loading",
    ):
        report.progress(what)
    assert words.getvalue().splitlines() == ["engine: loading", "Triton: starting", "engine: warming up"]


def test_a_terminal_has_the_spinner_instead() -> None:
    report, words = make_report(is_terminal=True)
    report.progress("engine: loading 10%")
    assert words.getvalue() == ""


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_the_server_outlives_who_reads_its_words(number: int, is_terminal: bool) -> None:
    lost = []

    class Closed(io.StringIO):
        def write(self, words: str) -> int:
            lost.append(words)
            raise OSError(number, os.strerror(number))

    report, _ = make_report(is_terminal, LastingConsole(file=Closed(), force_terminal=is_terminal))
    with report:
        report.progress("engine: loading")
        report.ready(1.0)
        report.news("the engine ended; starting it again")
    assert lost, "nothing was said"
