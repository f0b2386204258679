"""Gives numba a folder for what it compiles where neither the checkout nor the home can be written.

Such is a container with a read-only root and a user of its own. What lies in the folder is loaded as code: so it is
this user's alone, as is the directory of launches beside it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from backend.config import REPOSITORY_ROOT
from backend.core.ownership import make_own_folder

logger = logging.getLogger(__name__)

VARIABLE = "NUMBA_CACHE_DIR"


def provide_kernel_folder() -> None:
    """Set NUMBA_CACHE_DIR when numba would find no folder of its own; called before numba is imported."""
    given = os.environ.get(VARIABLE)
    if any(_can_write(folder) for folder in ([Path(given)] if given else _usual_folders())):
        return
    parent = Path(tempfile.gettempdir()) / f"bros-{os.getuid()}"
    if not _can_write(parent):
        logger.warning("no folder for compiled loops: they are compiled anew at each start; set %s", VARIABLE)
        return
    parent.chmod(0o700)
    os.environ[VARIABLE] = str(parent / "kernels")


def _usual_folders() -> Sequence[Path]:
    """Return the folders that numba tries: beside the source, then in the home."""
    home = Path(os.path.expanduser("~"))  # stays "~" for a user without a home
    return [REPOSITORY_ROOT / "kv" / "__pycache__", *([home / ".cache" / "numba"] if home.is_absolute() else [])]


def _can_write(folder: Path) -> bool:
    try:
        make_own_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
