"""Where a real vLLM is, for the tests that take one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


def vllm_python() -> Path:
    """Return the interpreter that has vLLM: $BROS_VLLM_PYTHON, else that of `make serve-vllm`; skips where none is."""
    python = Path(os.environ.get("BROS_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"no vLLM: {python} is not there (make test-vllm installs it)")
    return python
