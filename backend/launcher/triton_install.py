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

from backend.config import REPOSITORY_ROOT
from backend.core.errors import ConfigError

STUB = "triton_python_backend_stub"
_LIBRARIES = "nvidia_pytriton.libs"
_ERROR_MODE = b"\0triton_grpc_error\0"


@dataclass(frozen=True, slots=True)
class TritonInstall:
    """A server binary, its backend directory where it does not know its own, and variables that it needs."""

    binary: Path
    backends: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def find_triton(named: str | None, run_directory: Path) -> TritonInstall:
    """Return the server to run; the embedded one gets its backends laid out in `run_directory`. Raises ConfigError."""
    if named is not None:
        return TritonInstall(_executable(named))
    if on_path := shutil.which("tritonserver"):
        return TritonInstall(Path(on_path))
    return _embedded(run_directory)


def _executable(named: str) -> Path:
    found = shutil.which(named)
    if found is None:
        raise ConfigError(f"--tritonserver: {named!r} is not an executable file")
    return Path(found)


def _embedded(run_directory: Path) -> TritonInstall:
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
    return TritonInstall(_server(root, run_directory), _make_backends(root, stub, run_directory), environment)


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


def _server(root: Path, run_directory: Path) -> Path:
    """Return the server without its error mode: a copy that looks for that header by a name that HTTP/2 forbids.

    With `triton_grpc_error: true` an error ends a gRPC stream. Server 2.51 may then use the stream's state after it was
    freed, so any client could end the server. Later releases have the fix. If no copy can run, the original runs.
    """
    original = root / "bin" / "tritonserver"
    content = original.read_bytes()
    copy = run_directory / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    if content.count(_ERROR_MODE) != 1:
        return original
    try:
        copy.parent.mkdir(parents=True)
        copy.write_bytes(content.replace(_ERROR_MODE, _ERROR_MODE.upper()))
        copy.chmod(0o700)
        (copy.parents[1] / "lib").symlink_to(root / "lib")  # both searched relative to the server
        (run_directory / _LIBRARIES).symlink_to(root.parents[1] / _LIBRARIES)
    except OSError:  # no room for it
        return original
    return copy if os.access(copy, os.X_OK) else original  # on a file system mounted noexec it is not


def _make_backends(root: Path, stub: Path, run_directory: Path) -> Path:
    """Lay out a backend directory. The stub finds its libraries relative to where it really lies: so it is linked."""
    python = run_directory / "backends" / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (python / name).symlink_to(root / "backends" / "python" / name)
    (python / STUB).symlink_to(stub)
    return python.parent
