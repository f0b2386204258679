"""`make test-trtllm` installs what its tests import and TensorRT-LLM's own requirements do not bring."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions

from backend.config import REPOSITORY_ROOT

OF_TENSORRT_LLM = {"numpy", "protobuf", "typing_extensions"}
OPTIONAL = {"scipy", "pyyaml"}  # numba takes them where they are
LIST_IMPORTS = """
import sys
at_start = set(sys.modules)
import tests.conftest, tests.backend.executors.trtllm.test_gpu, backend.launcher.serve, backend.server.socket_server
print(*{name.split(".")[0] for name in sys.modules.keys() - at_start})
"""


def test_everything_that_the_gpu_tests_import_is_installed() -> None:
    listed = {
        line.replace("-", "_")
        for name in ("trtllm-image.txt", "trtllm-test.txt")
        for line in (REPOSITORY_ROOT / "requirements" / name).read_text().splitlines()
    }
    done = subprocess.run(
        [sys.executable, "-c", LIST_IMPORTS], cwd=REPOSITORY_ROOT, check=True, capture_output=True, text=True
    )
    modules = set(done.stdout.split()) - {path.stem for path in REPOSITORY_ROOT.iterdir()}
    providers = packages_distributions()
    needed = {name.lower().replace("-", "_") for module in modules for name in providers.get(module, [])}
    assert needed - OF_TENSORRT_LLM - OPTIONAL <= listed
