"""Every script in examples/ runs against a real server as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.triton.servers import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py")) + sorted(EXAMPLES.glob("*.sh"))


def test_there_are_examples_for_both_protocols_and_both_styles() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"triton_grpc.py", "triton_grpc_asyncio.py", "http_stream.py", "http_asyncio.py", "curl.sh"} <= names


@pytest.mark.triton
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_example_runs(script: Path, triton_server: Server) -> None:
    is_http = script.name.startswith("http") or script.suffix == ".sh"
    runner = "sh" if script.suffix == ".sh" else sys.executable
    command = [runner, str(script), triton_server.http_url if is_http else triton_server.grpc_url]
    root = EXAMPLES.parent
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root, env=_environment(root))
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout) > 40
    assert "error" not in ran.stdout
    assert "Error" not in ran.stderr


def _environment(root: Path) -> dict[str, str]:
    """Return an environment in which `import client` finds this checkout, installed or not."""
    return {**os.environ, "PYTHONPATH": str(root)}
