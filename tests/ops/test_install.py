"""What `make` installs, and what it refuses to install."""

from __future__ import annotations

import ast
import itertools
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"embedded", "clients"}  # extras without their dependencies, or in an environment of their own


def make_report(*names: str) -> dict[str, list[dict[str, dict[str, str]]]]:
    return {"install": [{"metadata": {"name": name}} for name in names]}


def locked_names() -> set[str]:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    return {line.split("==")[0] for line in lines if not line.startswith("#")}


def test_a_cuda_build_of_torch_is_recognised() -> None:
    cuda_packages = runpy.run_path(str(ROOT / "requirements" / "check_torch.py"))["cuda_packages"]
    assert cuda_packages(make_report("torch", "nvidia-cublas", "cuda-bindings", "sympy")) == [
        "nvidia-cublas",
        "cuda-bindings",
    ]
    assert cuda_packages(make_report("torch", "sympy", "numpy")) == []


def test_the_lock_pins_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for name, group in extras.items() if name not in ELSEWHERE for r in group)]
    assert {re.split(r"[\[<>=]", r)[0] for r in wanted} <= locked_names()


PIP_SAYS = """Looking in indexes: https://example.org/simple
Collecting torch==2.13.0
  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl.metadata (30 kB)
  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (190.5 MB)
Progress 0 of 190500000
Progress 65000000 of 190500000
Progress 70000000 of 190500000
Progress 190500000 of 190500000
Collecting sympy (from torch==2.13.0)
  Using cached sympy-1.14.0-py3-none-any.whl (6.3 MB)
Installing collected packages: sympy, torch
Successfully installed sympy-1.14.0 torch-2.13.0
"""


def test_an_installation_tells_each_package_and_how_far_a_long_download_is() -> None:
    tell = runpy.run_path(str(ROOT / "requirements" / "install.py"))["tell"]
    clock = itertools.count(step=2.0)
    assert list(tell(PIP_SAYS.splitlines(), lambda: next(clock))) == [
        "torch-2.13.0 (190.5 MB)",
        "torch-2.13.0: 70 of 190 MB",
        "sympy-1.14.0 (6.3 MB)",
        "unpacking 2 packages",
    ]


def test_a_failed_installation_shows_pips_last_words() -> None:
    command = [sys.executable, ROOT / "requirements" / "install.py", "--no-index", "no-such-package"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "No matching distribution found for no-such-package" in result.stderr


def test_the_lock_holds_no_cuda_package() -> None:
    assert not [name for name in locked_names() if name.startswith(("nvidia-", "cuda-"))]


def test_the_embedded_server_is_pinned_alike_in_both_places() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "requirements" / "no-deps.txt").read_text().splitlines()
    assert extras["embedded"] == [line for line in lines if not line.startswith("#")]


def test_torch_is_pinned_alike_in_makefile_and_lock() -> None:
    pin = next(line for line in (ROOT / "requirements" / "lock.txt").read_text().splitlines() if "torch==" in line)
    assert f"TORCH := {pin}\n" in (ROOT / "Makefile").read_text()


def test_make_help_lists_every_public_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    listed = subprocess.run(["make", "-C", ROOT, "help"], check=True, capture_output=True, text=True).stdout
    assert set(phony.split()) == set(re.findall(r"^  make (\S+)", listed, re.MULTILINE))


NOT_INSTALLED = {
    "triton_python_backend_utils",  # part of Triton's backend
    "triton",  # comes with CUDA builds of torch; tests of its kernel skip where it is not
    "tensorrt_llm",  # part of NVIDIA's image
    "vllm",  # in an environment of its own: make serve-vllm
    "langchain_openai",  # in an environment of its own: make test-clients
    "dynamo",  # in an environment of its own: make serve-many
    "aiconfigurator_core",  # only `python -m tools.fit_step_models` needs it, and says so
}


def third_party_modules() -> set[str]:
    """Return the top-level modules that our code imports and that are neither ours nor Python's."""
    files = [
        file
        for package in ("kv", "backend", "client", "front", "bench", "tests")
        for file in (ROOT / package).rglob("*.py")
    ]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    ours = {path.stem for path in ROOT.iterdir()} | {"conftest"}
    return (plain | froms) - sys.stdlib_module_names - ours - NOT_INSTALLED


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    declared = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in requirements}
    distributions = packages_distributions()
    sources = {
        module: {name.lower() for name in distributions.get(module, [module])} for module in third_party_modules()
    }
    assert not {module: names for module, names in sources.items() if not declared & names}
