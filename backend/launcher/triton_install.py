"""Finds a Triton server: the one named, else on PATH, else inside the package `nvidia-pytriton`.

The package contains the server, the Python backend and a stub per Python version. The stub embeds Python. It needs
this interpreter's shared library, and takes its packages from the first `python3` on PATH. Under NumPy 2 it dies at
the first string tensor (server 2.51).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from backend.config import REPOSITORY_ROOT, ServiceSettings
from backend.core.errors import ConfigError
from backend.launcher.triton_copy import PLAIN_MESSAGES, copy_server, core_edits, edits

STUB = "triton_python_backend_stub"
_BYTES_PER_PROMPT_BYTE = 5  # a prompt may come as token ids, of up to five bytes each in a message
_USUAL_PROMPT_BYTES = ServiceSettings().max_prompt_bytes
_BYTES_BESIDE_PROMPT = 1 << 20  # tools, a JSON schema, sampling parameters


@dataclass(frozen=True, slots=True)
class TritonInstall:
    """A server binary, its backend directory where it does not know its own, and variables that it needs.

    `warnings` say what the embedded server's copy could not be kept from; `flags` go to the server.
    """

    binary: Path
    backends: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    flags: Sequence[str] = ()


def find_triton(named: str | None, run_directory: Path, max_prompt_bytes: int = _USUAL_PROMPT_BYTES) -> TritonInstall:
    """Return the server to run; the embedded one gets its backends laid out in `run_directory`. Raises ConfigError."""
    if named is not None:
        return TritonInstall(_executable(named))
    if on_path := shutil.which("tritonserver"):
        return TritonInstall(Path(on_path))
    return _embedded(run_directory, max_message_bytes(max_prompt_bytes))


def max_message_bytes(max_prompt_bytes: int) -> int:
    """Return how long a gRPC message to the embedded server may be."""
    return _BYTES_PER_PROMPT_BYTE * max_prompt_bytes + _BYTES_BESIDE_PROMPT


def _executable(named: str) -> Path:
    found = shutil.which(named)
    if found is None:
        raise ConfigError(f"--tritonserver: {named!r} is not an executable file")
    return Path(found)


def _embedded(run_directory: Path, max_bytes: int) -> TritonInstall:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "no tritonserver on PATH, and the package nvidia-pytriton is not installed: `make serve` does"
        )
    root = Path(spec.submodule_search_locations[0]) / "tritonserver"
    if int(version("numpy").split(".")[0]) >= 2:
        raise ConfigError(f"numpy {version('numpy')}: the embedded Triton's stubs need numpy<2")
    _check_paths([str(REPOSITORY_ROOT), sys.prefix, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    stub = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB
    _check_stub(stub, environment)
    server, warnings = copy_server(root, run_directory, edits(max_bytes), core_edits())
    backends = _make_backends(root, stub, run_directory)
    return TritonInstall(server, backends, environment, warnings, flags=[PLAIN_MESSAGES])


def _check_paths(paths: Sequence[str]) -> None:
    """Refuse folders of modules that the embedded stubs cannot name: their Python decodes none but ASCII (2.51)."""
    if wrong := [path for path in paths if not path.isascii()]:
        raise ConfigError(f"{wrong[0]!r} has letters outside ASCII, with which Triton's stubs do not start: rename it")


def _check_stub(stub: Path, environment: Mapping[str, str]) -> None:
    """Start the stub without arguments: it says so and exits with 1, unless its libraries are missing."""
    if not stub.exists():
        raise ConfigError(f"nvidia-pytriton has no stub for Python {stub.parent.name}: use Python 3.11 or 3.12")
    result = subprocess.run([stub], env=dict(environment), capture_output=True, text=True, check=False)
    if result.returncode != 1:
        raise ConfigError(f"the Triton stub for Python {stub.parent.name} does not start: {result.stderr.strip()}")


def _make_backends(root: Path, stub: Path, run_directory: Path) -> Path:
    """Lay out a backend directory. The stub finds its libraries relative to where it really lies: so it is linked."""
    python = run_directory / "backends" / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (python / name).symlink_to(root / "backends" / "python" / name)
    (python / STUB).symlink_to(stub)
    return python.parent
