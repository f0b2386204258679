"""Compiles kernels, and keeps them on disk until a source they are made of changes.

Numba's own cache follows the file that defines a function, but not the files whose functions it inlines.
"""

# numba's compiler classes have no type hints.
# mypy: disable-error-code="misc, no-untyped-call, attr-defined"

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc

from backend.core.ownership import own

Kernel = Any  # numba's CFunc; `.address` is what `run_on_team` takes

_SIGNATURE = ((types.voidptr,), types.void)
# All that a kernel may inline; the rest of the package only calls kernels.
SOURCES = ("kernels.py", "chunk_kernel.py", "product_kernel.py", "program.py", "lanes.py", "team.py", "kernel_cache.py")


def compile_kernel(function: Callable[[Any], None]) -> Kernel:
    """Compile `void f(void *block)`, or read it from the cache, if numba finds a directory to write to."""
    kernel = CFunc(function, _SIGNATURE, {}, {"fastmath": True})
    try:
        kernel._cache = _KernelCache(function, source_stamp())
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
    kernel.compile()
    return kernel


def source_stamp(directory: Path = Path(__file__).parent) -> str:
    """Return a digest of the sources that kernels are made of."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()


class _KernelCache(FunctionCache):
    """Numba's cache of one function, valid for one stamp."""

    def __init__(self, function: Callable[[Any], None], stamp: str) -> None:
        super().__init__(function)
        self._cache_file = _LockedFiles(self._cache_path, self._impl.filename_base, stamp)


class _LockedFiles(IndexDataCacheFile):
    """The index and the kernels of one function, for one process at a time.

    Numba numbers the files of a function's specialisations by an index that it read before. Two processes that compile
    different ones at once would take the same number, and one would run the other's machine code.
    """

    def load(self, key: Any) -> Any:
        with self._locked():
            return super().load(key)

    def save(self, key: Any, data: Any) -> None:
        with self._locked():
            super().save(key, data)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        Path(self._cache_path).mkdir(parents=True, exist_ok=True)
        with open(f"{self._index_path}.lock", "ab", opener=own) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
