"""Where a result comes from: commit, date, machine and versions, stored in every result file."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_MEASURED = (":/backend", ":/kv", ":/bench", ":/client", ":/model_repository", ":(top,exclude)bench/results")
_PACKAGES = ("numpy", "scipy", "torch", "nvidia-pytriton", "tritonclient")


def provenance() -> dict[str, Any]:
    """Return JSON-ready facts about this checkout and machine."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "has_local_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_MEASURED)),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": {"cpu": _cpu_model(), "num_cores": os.cpu_count(), "memory_gib": _memory_gib()},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def describe(provenance: Mapping[str, Any]) -> str:
    """One line on where a result comes from."""
    hardware, versions = provenance["hardware"], provenance["versions"]
    dirty = " with local changes" if provenance["has_local_changes"] else ""
    return (
        f"Commit {provenance['commit']}{dirty}, {provenance['date']}, {hardware['num_cores']} cores of "
        f"{hardware['cpu']}, {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def _git(*arguments: str) -> str:
    root = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
