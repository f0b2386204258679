"""Every script in examples/ runs against a real server as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.triton.servers import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECORDING = EXAMPLES / "record_top.sh"  # starts a server of its own
SCRIPTS = sorted(EXAMPLES.glob("*.py")) + sorted(set(EXAMPLES.glob("*.sh")) - {RECORDING})
ARGUMENTS = {"burst.py": ["2"]}  # seconds


def test_there_are_examples_for_both_protocols_and_both_styles() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"triton_grpc.py", "triton_grpc_asyncio.py", "http_stream.py", "http_asyncio.py", "curl.sh"} <= names


@pytest.mark.triton
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_example_runs(script: Path, sim: Server) -> None:
    is_http = script.name.startswith("http") or script.suffix == ".sh"
    runner = "sh" if script.suffix == ".sh" else sys.executable
    url = sim.http_url if is_http else sim.grpc_url
    ran = run([runner, str(script), url, *ARGUMENTS.get(script.name, [])])
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout) > 40
    assert "error" not in ran.stdout
    assert "Error" not in ran.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_an_example_without_a_server_ends_with_one_line(script: Path) -> None:
    is_http = script.name.startswith("http") or script.suffix == ".sh"
    runner = "sh" if script.suffix == ".sh" else sys.executable
    url = ("http://" if is_http else "") + "127.0.0.1:9"
    ran = run([runner, str(script), url, *ARGUMENTS.get(script.name, [])])
    assert ran.returncode != 0
    (line,) = ran.stderr.splitlines()
    assert len(line) > 10


@pytest.mark.triton
@pytest.mark.slow
def test_a_burst_is_recorded_by_one_command(tmp_path: Path) -> None:
    ran = run(["sh", str(RECORDING), str(tmp_path / "top.svg")])
    assert ran.returncode == 0, ran.stderr
    root = ElementTree.parse(tmp_path / "top.svg").getroot()
    assert len(list(root.iter("{http://www.w3.org/2000/svg}animate"))) > 5


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run with an environment in which `import client` finds this checkout, installed or not."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=EXAMPLES.parent, env=environment)
