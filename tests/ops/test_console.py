"""What `bros-serve` tells while it starts, where nobody sees a spinner."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from backend.launcher.endpoints import Endpoints
from backend.launcher.launch import Launch
from backend.launcher.serve import ConsoleReport
from backend.launcher.triton_install import TritonInstall


def make_report(is_terminal: bool) -> tuple[ConsoleReport, io.StringIO]:
    words = io.StringIO()
    at = Endpoints("127.0.0.1", 1, 2, 3)
    launch = Launch(Path("/run"), Path("/log"), TritonInstall(Path("/bin/true")), at, 1.0, 1.0)
    return ConsoleReport(Console(file=words, force_terminal=is_terminal), launch, prints_json=False), words


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
