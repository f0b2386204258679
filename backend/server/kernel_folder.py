"""Gives numba and torch folders for what they compile.

numba needs one where neither the checkout nor the home can be written. Such is a container with a read-only root and a
user of its own. torch, under vLLM, would take a name in the temporary directory that any user can plant. What lies in
these folders is loaded as code: so they are this user's alone, as is the directory of launches beside them.
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
TORCH_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def provide_kernel_folder() -> None:
    """Set NUMBA_CACHE_DIR when numba would find no folder of its own; called before numba is imported."""
    given = os.environ.get(VARIABLE)
    if any(_can_write(folder) for folder in ([Path(given)] if given else _usual_folders())):
        return
    if (parent := _private_folder()) is None:
        logger.warning("no folder for compiled loops: they are compiled anew at each start; set %s", VARIABLE)
        return
    os.environ[VARIABLE] = str(parent / "kernels")


def provide_torch_folder() -> None:
    """Set TORCHINDUCTOR_CACHE_DIR where nobody has; called before torch is imported."""
    if os.environ.get(TORCH_VARIABLE):
        return
    if (parent := _private_folder()) is None:
        logger.warning("no folder of this user's alone for what torch compiles: set %s", TORCH_VARIABLE)
        return
    os.environ[TORCH_VARIABLE] = str(parent / "inductor")


def _private_folder() -> Path | None:
    """Return a folder of this user's alone in the temporary directory; None where there can be none."""
    parent = Path(tempfile.gettempdir()) / f"bros-{os.getuid()}"
    if not _can_write(parent):
        return None
    parent.chmod(0o700)
    return parent


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
