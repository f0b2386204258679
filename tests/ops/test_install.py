"""What `make` installs, and what it refuses to install."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "requirements" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_report(*names: str) -> dict[str, list[dict[str, dict[str, str]]]]:
    return {"install": [{"metadata": {"name": name}} for name in names]}


def locked_names() -> set[str]:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    return {line.split("==")[0] for line in lines if not line.startswith("#")}


def test_a_cuda_build_of_torch_is_recognised() -> None:
    cuda_packages = load_script("check_torch").cuda_packages
    assert cuda_packages(make_report("torch", "nvidia-cublas", "cuda-bindings", "sympy")) == [
        "nvidia-cublas",
        "cuda-bindings",
    ]
    assert cuda_packages(make_report("torch", "sympy", "numpy")) == []


def test_the_lock_pins_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for name, group in extras.items() if name != "embedded" for r in group)]
    assert {re.split(r"[\[<>=]", r)[0] for r in wanted} <= locked_names()


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
    public = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    listed = subprocess.run(["make", "-C", ROOT, "help"], check=True, capture_output=True, text=True).stdout
    assert public == set(re.findall(r"^  make (\S+)", listed, re.MULTILINE))
