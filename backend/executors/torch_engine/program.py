"""Many kernels in one call: every thread of the team runs them in turn, and meets the others after each.

Between two kernels no Python runs, so nothing waits for the interpreter's lock.
"""

# the kernel's body is numba's language, not Python's.
# mypy: disable-error-code="attr-defined, arg-type, call-arg, type-var, unreachable, untyped-decorator, var-annotated"

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, types
from numpy.typing import NDArray

from backend.executors.torch_engine import team
from backend.executors.torch_engine.kernel_cache import Kernel, compile_kernel
from backend.executors.torch_engine.kernels import NUM_FIELDS, thread_index
from backend.executors.torch_engine.lanes import call_kernel, i64_pointer, read_ticks

_CALLS, _NUM_CALLS, _TICKS = range(3)

_meet = types.ExternalFunction(team.BARRIER_SYMBOL, types.void())


class Program:
    """Rounds of the same kernels on other arguments; `fields` [rounds, kernels, NUM_FIELDS] is each call's block."""

    def __init__(self, kernels: Sequence[Kernel], num_rounds: int, num_threads: int) -> None:
        self.kernels = kernels
        self.fields = np.zeros((num_rounds, len(kernels), NUM_FIELDS), np.int64)
        self._num_threads = num_threads
        self._calls = np.empty((num_rounds, len(kernels), 2), np.int64)
        self._calls[..., 0] = [kernel.address for kernel in kernels]
        block_bytes = NUM_FIELDS * self.fields.itemsize
        blocks = self.fields.ctypes.data + block_bytes * np.arange(num_rounds * len(kernels))
        self._calls[..., 1] = blocks.reshape(num_rounds, len(kernels))
        self._ticks = np.zeros(num_rounds * len(kernels) + 1, np.int64)
        self._block = np.array([self._calls.ctypes.data, self._calls[..., 0].size, self._ticks.ctypes.data], np.int64)
        self._address: int = self._block.ctypes.data
        self._kernel_address: int = _compile_program().address

    def run(self) -> None:
        """Run all; every call's bounds must be those of `num_threads` threads."""
        team.run_on_team(self._kernel_address, self._address, self._num_threads, 0)

    def shares(self) -> NDArray[np.float64]:
        """Return the share of each kernel [kernels] in the time of the last run."""
        ticks = np.diff(self._ticks).reshape(-1, len(self.kernels)).sum(0)
        shares: NDArray[np.float64] = ticks / ticks.sum()
        return shares


@functools.cache
def _compile_program() -> Kernel:
    """CALLS: [NUM_CALLS, 2], the address of a kernel and of its block; TICKS: [NUM_CALLS + 1], from start to end."""

    def program(data: Any) -> None:
        block = carray(data, (3,), np.int64)
        count = block[_NUM_CALLS]
        calls = carray(i64_pointer(block[_CALLS]), (count, 2))
        ticks = carray(i64_pointer(block[_TICKS]), (count + 1,))
        is_first = thread_index() == 0
        if is_first:
            ticks[0] = read_ticks()
        for i in range(count):
            call_kernel(calls[i, 0], calls[i, 1])
            _meet()
            if is_first:
                ticks[i + 1] = read_ticks()

    return compile_kernel(program)
