"""The import order of docs/architecture.md, read from the source and enforced: a DAG from `kv` up to `model.py`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kv", "backend", "client", "front", "bench", "tools")
OWN = set(PACKAGES) | {"tests"}

# Room -> rooms below that it may import; a module may also import its own room. The longest matching name wins.
STATE = {"kv", "backend.core", "backend.policy.settings", "backend.policy.state"}
PACKING = {*STATE, "backend.policy.view", "backend.policy.packing"}
POLICY = {*PACKING, "backend.policy"}
FOREIGN = {"kv", "backend.core", "backend.engine", "backend.policy"}
MAY_IMPORT = {
    "kv": set[str](),
    "backend.core": {"kv"},
    "backend.policy.settings": {"backend.core"},
    "backend.policy.state": STATE,
    "backend.policy.view": STATE,
    "backend.policy.packing": PACKING,
    "backend.policy.bros": PACKING,
    "backend.policy.baselines": PACKING,
    "backend.policy": POLICY,
    "backend.engine": {*STATE, "backend.policy.view", "backend.policy.registry"},
    "backend.wire": {"backend.core"},
    "backend.text": {"backend.core", "backend.wire"},
    "backend.executors.sim": {"backend.core"},
    "backend.executors.torch_engine": {"kv", "backend.core", "backend.text"},
    # They drive the policy from inside another engine's loop.
    "backend.executors.foreign": FOREIGN,
    "backend.executors.trtllm": {*FOREIGN, "backend.executors.foreign"},
    "backend.executors.vllm": {
        *FOREIGN,
        "backend.executors.foreign",
        "backend.executors.torch_engine.export",
        "backend.text",
    },
    "backend.config": {"backend.core", "backend.executors", "backend.policy.settings"},
    "backend.server": {
        "kv",
        "backend.config",
        *(f"backend.{room}" for room in ("core", "engine", "executors")),
        "backend.policy.state",
        "backend.text",
        "backend.wire",
    },
    "backend.link": {"backend.config", "backend.core", "backend.wire"},
    "backend.stub": {"backend.config", "backend.core", "backend.link", "backend.wire"},
    "backend.dynamo": {
        "backend.config",
        "backend.core",
        "backend.launcher.child",
        "backend.launcher.launch",
        "backend.link",
        "backend.text",
        "backend.wire",
    },
    "backend.launcher": {
        "backend.config",
        "backend.core",
        "backend.executors.torch_engine.settings",
        "backend.policy.settings",
        "backend.text",
        "backend.wire",
    },
    "backend": set[str](),
    "client.wire": set[str](),
    "client.errors": {"client.wire"},
    "client.generation": {"client.wire"},
    "client.openai": {"client.errors", "client.generation", "client.wire"},
    "client": set[str](),
    "front": {"backend.core.garbage", "backend.core.numbers", "backend.core.ownership", "client"},
    "bench.common": set[str](),
    "bench.sim": {"kv", "backend", "bench.common"},
    "bench.live": {"backend", "client", "bench.common", "bench.sim"},
    "bench": {"kv", "backend", "client"},
    "tools": {"kv", "backend", "bench"},
}
# Third-party modules that pure code may import, and where pure code lives.
PURE = (
    "kv",
    "backend.core.plan",
    "backend.core.request",
    "backend.policy",
    "backend.engine.committed_step",
    "backend.engine.scheduler",
    "backend.engine.admission",
    "backend.engine.feedback",
    "bench.common.workload",
    "bench.common.stats",
)
PURE_THIRD_PARTY = {"numpy", "numba"}  # numba: see kv/compiled.py
IMPURE_STANDARD = {"time", "random", "socket", "threading", "subprocess", "asyncio", "os", "secrets", "uuid", "logging"}


def modules() -> list[tuple[str, Path]]:
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in files]


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports(path: Path) -> Iterator[str]:
    """Yield every absolute module name that a file imports, at whatever depth; `from a import b` yields `a`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module


def rule_for(module: str) -> set[str]:
    room = max((name for name in MAY_IMPORT if is_within(module, name)), key=len)
    return MAY_IMPORT[room] | {room}


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_module_imports_only_what_stands_below_it(module: str, path: Path) -> None:
    own = {name for name in imports(path) if name.split(".")[0] in OWN}
    allowed = rule_for(module)
    above = sorted(name for name in own if not any(is_within(name, package) for package in allowed))
    assert not above, f"{module} imports {above}; it may import {sorted(allowed)}"


@pytest.mark.parametrize("module", [name for name, _ in modules() if any(is_within(name, pure) for pure in PURE)])
def test_pure_module_has_no_io_clock_or_randomness(module: str) -> None:
    path = dict(modules())[module]
    top_level = {name.split(".")[0] for name in imports(path)} - OWN - PURE_THIRD_PARTY
    foreign = top_level - sys.stdlib_module_names
    assert not foreign, f"{module} is pure code but imports {sorted(foreign)}"
    assert not top_level & IMPURE_STANDARD, f"{module} is pure code but imports {sorted(top_level & IMPURE_STANDARD)}"


def test_only_the_stub_side_touches_tritons_python_module() -> None:
    users = [name for name, path in modules() if "triton_python_backend_utils" in set(imports(path))]
    assert users == ["backend.stub.triton_model"]
