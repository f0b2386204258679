"""The torch engine on lesser processors: its tests run again with the instruction sets held down, in their own process.

What torch, oneDNN and numba may use is said by environment variables that they read when they are loaded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backend.executors.torch_engine.processor import detect
from bench.peers import HELD_DOWN as HELD_TO_AVX2

ROOT = Path(__file__).resolve().parents[4]
HELD_DOWN = {
    "AVX2": HELD_TO_AVX2,
    "generic": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "+sse,+sse2,+mmx",
    },
}
# What differs between processors: kernels, products, the choice among them, and tokens through all of it.
MODULES = [
    "test_compiled_ops.py",
    "test_compiled_product.py",
    "test_layer_program.py",
    "test_product_choice.py",
    "test_exactness.py",
]

NEEDS_AVX2 = "test_layer_program.py"  # all of it


def is_lower(isa: str) -> bool:
    return isa == "generic" or detect().has_avx512


def run_held_down(isa: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *arguments]
    environment = os.environ | HELD_DOWN[isa]
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", HELD_DOWN)
def test_a_held_down_processor_is_detected_as_that(isa: str) -> None:
    if not is_lower(isa):
        pytest.skip(f"the processor itself has {isa}")
    program = "from backend.executors.torch_engine.processor import detect; print(detect().isa)"
    environment = os.environ | HELD_DOWN[isa]
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == isa, done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("isa", "module"),
    [(isa, module) for isa in HELD_DOWN for module in MODULES if (isa, module) != ("generic", NEEDS_AVX2)],
)
def test_the_engines_tests_pass_on_a_lesser_processor(isa: str, module: str) -> None:
    if not is_lower(isa):
        pytest.skip(f"the processor itself has {isa}, and runs {module} as it is")
    done = run_held_down(isa, [f"tests/backend/executors/torch_engine/{module}"])
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 0
