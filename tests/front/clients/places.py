"""Where other people's clients are, and how a program of theirs is run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 300.0  # several seconds of imports each, on a machine that may stall
# Nothing is asked of the network: no list of prices, no tokenizer, no telemetry.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def clients_python() -> Path:
    """Return the interpreter that has the clients: $BROS_CLIENTS_PYTHON, else that of `make test-clients`; or skip."""
    python = Path(os.environ.get("BROS_CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"no clients: {python} is not there (make test-clients installs them)")
    return python


def run(command: Sequence[str | Path], folder: Path, further: Mapping[str, str] = OFFLINE) -> str:
    """Run a command of the clients' environment in `folder`, its home; return what it prints."""
    names = ("PATH", "LANG", "TMPDIR")
    environment = {name: os.environ[name] for name in names if name in os.environ} | dict(further)
    environment |= {"HOME": str(folder), "LLM_USER_PATH": str(folder / "llm")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def seen_by(program: str, folder: Path, *arguments: str) -> Any:
    """Return what a program beside this file, run with the clients' interpreter, prints as JSON on its last line."""
    script = Path(__file__).parent / f"{program}.py"
    return json.loads(run([clients_python(), script, *arguments], folder).splitlines()[-1])
