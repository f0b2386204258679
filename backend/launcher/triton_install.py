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

STUB = "triton_python_backend_stub"
_LIBRARIES = "nvidia_pytriton.libs"
# Names in the embedded server (2.51) by which any client can end it, and names of the same length that none can send.
_DANGEROUS_NAMES = {
    b"\0triton_grpc_error\0": b"\0TRITON_GRPC_ERROR\0",  # a header, which HTTP/2 allows in small letters only
}
# Of the embedded server for x86-64: `builder.max_receive_message_size_ = INT32_MAX`, for which it has no option.
_NO_LIMIT = bytes.fromhex("41 c7 45 50 ff ff ff 7f")
_BYTES_PER_PROMPT_BYTE = 5  # a prompt may come as token ids, of up to five bytes each in a message
_USUAL_PROMPT_BYTES = ServiceSettings().max_prompt_bytes
_BYTES_BESIDE_PROMPT = 1 << 20  # tools, a JSON schema, sampling parameters


@dataclass(frozen=True, slots=True)
class TritonInstall:
    """A server binary, its backend directory where it does not know its own, and variables that it needs."""

    binary: Path
    backends: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


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
    server = _server(root, run_directory, max_bytes)
    return TritonInstall(server, _make_backends(root, stub, run_directory), environment)


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


def _server(root: Path, run_directory: Path, max_bytes: int) -> Path:
    """Return a copy of the server that looks for dangerous names under names that no client can send.

    With `triton_grpc_error: true` an error ends a gRPC stream. Server 2.51 may then use the stream's state after it was
    freed, so any client could end the server. It also takes gRPC messages of 2 GB, which hold up all others;
    the copy refuses those above `max_bytes`. If no copy can run, the original runs.
    """
    original = root / "bin" / "tritonserver"
    content = original.read_bytes()
    copy = run_directory / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    for name, harmless in _DANGEROUS_NAMES.items():
        if content.count(name) != 1:
            return original
        content = content.replace(name, harmless)
    if content.count(_NO_LIMIT) == 1:
        content = content.replace(_NO_LIMIT, _NO_LIMIT[:-4] + max_bytes.to_bytes(4, "little"))
    try:
        copy.parent.mkdir(parents=True)
        copy.write_bytes(content)
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
