"""Every command, target and file that the README names exists, and its client examples run against a real server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from backend.serving.options import make_parser
from tests.triton.servers import Server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("architecture.md", "operations.md"))]
README = DOCUMENTS[0].read_text()
EXAMPLES = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
DEFAULT_PORTS = {"http": "8000", "grpc": "8001", "metrics": "8002"}


@pytest.fixture
def environment(sim: Server, tmp_path: Path) -> dict[str, str]:
    """An activated environment, with a `bros` that knows the test server's ports."""
    shim = tmp_path / "bros"
    shim.write_text(
        f'#!/bin/sh\ncommand=$1; shift; test "$command" = status && set -- --http-url {sim.http_url} "$@"\n'
        f'exec {sys.executable} -m client.cli "$command" --url grpc://{sim.grpc_url} "$@"\n'
    )
    shim.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.mark.triton
@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_an_example_of_the_readme_runs(language: str, code: str, sim: Server, environment: dict[str, str]) -> None:
    code = code.replace("source .venv/bin/activate\n", "")
    for name, port in DEFAULT_PORTS.items():
        code = code.replace(
            f"127.0.0.1:{port}", getattr(sim, f"{name}_url").removeprefix("http://").removesuffix("/metrics")
        )
    command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"t\d+|ready", result.stdout), f"no token of the simulated model in {result.stdout!r}"


def test_the_readme_shows_command_line_curl_and_tritonclient() -> None:
    codes = "\n".join(code for _, code in EXAMPLES)
    assert all(word in codes for word in ("bros generate", "curl", "tritonclient"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_files_and_targets_that_exist(document: Path) -> None:
    text = document.read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:backend|bench|client|deploy|docs|examples|kv|tests|model_repository)/[\w./-]*)", text)
    missing = [name for name in linked if not (document.parent / name).exists()]
    assert not missing + [name for name in named if not (ROOT / name).exists()]


ALL_DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", ALL_DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_modules_and_scripts_that_exist(document: Path) -> None:
    """What is not run: containers and clusters (none here), other machines' paths, benchmarks of minutes to hours."""
    text = document.read_text()
    modules = re.findall(r"python -m ((?:backend|bench|client|tests)[\w.]*\w)", text)
    assert not [name for name in modules if find_spec(name) is None]
    scripts = re.findall(r"(?:python|sh) ((?:deploy|examples|requirements)/[\w./]+)", text)
    assert not [name for name in scripts if not (ROOT / name).exists()]


@pytest.mark.parametrize("arguments", re.findall(r'make serve ARGS="([^"]*)"', README))
def test_what_is_passed_to_serve_is_understood(arguments: str) -> None:
    make_parser().parse_args(shlex.split(arguments))
