"""Stop before pip fetches a CUDA build of torch unasked: exit 2 with one line that names the switch.

    python requirements/check_torch.py torch==2.13.0

Asks pip what the install would bring (nothing is downloaded but metadata). A CUDA build shows by the NVIDIA packages
it requires, several GB of them.
"""

from __future__ import annotations

import json
import subprocess
import sys

CUDA_PREFIXES = ("nvidia-", "cuda-")


def main() -> int:
    """Return 0 when the torch that pip would install (or has) needs no CUDA packages."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *sys.argv[1:]]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        print(result.stderr.strip(), file=sys.stderr)
        return 1
    if cuda := cuda_packages(json.loads(result.stdout)):
        print(
            f"torch from this package index is a CUDA build ({len(cuda)} NVIDIA packages, several GB). Choose one:\n"
            "  make serve TORCH_INDEX=https://download.pytorch.org/whl/cpu   # the CPU build\n"
            "  make serve TORCH_INDEX=https://pypi.org/simple                # the CUDA build",
            file=sys.stderr,
        )
        return 2
    return 0


def cuda_packages(report: dict[str, list[dict[str, dict[str, str]]]]) -> list[str]:
    """Name the packages of a pip installation report that only a CUDA build of torch brings."""
    names = [item["metadata"]["name"].lower() for item in report["install"]]
    return [name for name in names if name.startswith(CUDA_PREFIXES)]


if __name__ == "__main__":
    sys.exit(main())
