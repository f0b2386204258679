"""Resolve every extra of pyproject.toml together and write each version to `requirements/lock.txt` (`make lock`).

The lock is a pip constraints file: what pyproject.toml allows, pinned, transitive packages too. Local version labels
(`+cpu`) are left out, so that one lock serves CPU and CUDA builds of torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("torch", "serve", "client", "bench", "dev")
HEADER = "# Written by `make lock` from pyproject.toml; a pip constraints file. Do not edit.\n"


def main() -> None:
    """Ask pip what it would install into an empty environment, and write that down."""
    argparse.ArgumentParser(
        prog="python requirements/lock.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    target = f"{ROOT}[{','.join(EXTRAS)}]"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        target,
    ]
    report = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    packages = [item["metadata"] for item in json.loads(report)["install"]]
    pins = sorted(f"{p['name'].lower()}=={p['version'].split('+')[0]}\n" for p in packages if p["name"] != "bros")
    (ROOT / "requirements" / "lock.txt").write_text(HEADER + "".join(pins))
    print(f"{len(pins)} pins in requirements/lock.txt")


if __name__ == "__main__":
    main()
