"""docs/client.md names each public name, and no other."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import client.errors
from client import cli, wire
from client.generation import Metrics, Options

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "client.md").read_text()


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def names_in_first_column(text: str) -> set[str]:
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_option_and_no_other_is_listed() -> None:
    assert names_in_first_column(section("Options")) == set(Options.__annotations__)


def test_every_metric_is_named() -> None:
    assert all(f"`{name}`" in section("Options") for name in Metrics.__annotations__)


def test_every_error_and_code_is_listed() -> None:
    listed = names_in_first_column(section("Errors"))
    assert listed == {name for name in vars(client.errors) if name.endswith("Error")} - {"ClientError", "RequestError"}
    assert all(f"`{code}`" in section("Errors") for code in wire.ERROR_CODES)


def test_every_command_is_listed() -> None:
    listed = {name.split()[1] for name in names_in_first_column(section("Commands"))}
    (commands,) = [action for action in cli.make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert listed == set(commands.choices)


def test_the_script_on_the_page_runs_as_it_is() -> None:
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(script.replace("grpc://127.0.0.1:8001", "fake://"), names)
    assert str(names["answer"].text).startswith("Name three colours.")  # type: ignore[attr-defined]
