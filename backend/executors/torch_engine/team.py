"""Runs compiled functions on the threads torch itself computes with.

Torch's GEMMs run on a team of OpenMP threads that spin at first while they wait for work. A second pool of threads
(numba's own) would compete with them for the cores. So our function runs on the same team, through libgomp's entry
point `GOMP_parallel` (gcc, libgomp/parallel.c). If torch uses another runtime, the function runs in the caller."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm  # type: ignore[import-untyped] # it has no type hints
import torch

THREAD_INDEX_SYMBOL = "bros_thread_index"  # int32 (): the number of the calling thread in its team
BARRIER_SYMBOL = "bros_barrier"  # void (): returns when all threads of the team have come here


def _libgomp() -> ctypes.CDLL | None:
    """Return the libgomp that torch has loaded."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        return ctypes.CDLL(str(path))
    return None


_SINGLE_THREAD = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: 0)
_NO_BARRIER = ctypes.CFUNCTYPE(None)(lambda: None)
_LIBRARY = _libgomp()


def _run_in_caller(function: int, data: int, _num_threads: int, _flags: int) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)


def _team_runner() -> Callable[[int, int, int, int], None]:
    if _LIBRARY is None:
        return _run_in_caller
    run: Callable[[int, int, int, int], None] = _LIBRARY.GOMP_parallel
    run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)  # type: ignore[attr-defined] # ctypes
    run.restype = None  # type: ignore[attr-defined] # ctypes
    return run


# run_on_team(address of void f(void *data), data, num_threads, flags 0); num_threads must not exceed MAX_THREADS.
run_on_team = _team_runner()
MAX_THREADS = 1 if _LIBRARY is None else 64

_barrier = _NO_BARRIER if _LIBRARY is None else _LIBRARY.GOMP_barrier
_thread_index = _SINGLE_THREAD if _LIBRARY is None else _LIBRARY.omp_get_thread_num
for _symbol, _function in ((THREAD_INDEX_SYMBOL, _thread_index), (BARRIER_SYMBOL, _barrier)):
    _address = ctypes.cast(_function, ctypes.c_void_p).value
    assert _address is not None
    llvm.add_symbol(_symbol, _address)
