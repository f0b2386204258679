"""The parts of a step's time, measured inside the step: the clock is read around every call that computes.

A program of kernels is one call; the ticks after each kernel divide its time among them.

The rest is Python and bookkeeping: packing, arguments, dispatch, and the small copies between the parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from backend.executors.torch_engine import compiled_ops
from backend.executors.torch_engine.attention import TorchAttention
from backend.executors.torch_engine.compiled_ops import CompiledAttention
from backend.executors.torch_engine.linear import Linear
from backend.executors.torch_engine.processor import detect
from backend.executors.torch_engine.product_kernel import compile_product
from backend.executors.torch_engine.program import Program
from backend.executors.torch_engine.sampler import Sampler
from bench.report.engine import STEP_PARTS


class StepProfile:
    """The seconds of a step by part; a call inside another part's call counts for the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEP_PARTS, 0.0)
        self._is_inside = False

    def timed(self, part_of: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, adding its time to the part that `part_of` names for its arguments."""

        def run(*arguments: Any) -> Any:
            if self._is_inside:
                return function(*arguments)
            self._is_inside = True
            started_s = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds[part_of(*arguments)] += time.perf_counter() - started_s
                self._is_inside = False

        return run

    def timed_program(self, part_of: Callable[[int], str], run: Callable[[Program], None]) -> Callable[[Program], None]:
        """Return `run`, adding the time of each of the program's kernels to its part."""

        def run_timed(program: Program) -> None:
            self._is_inside = True
            started_s = time.perf_counter()
            run(program)
            duration_s = time.perf_counter() - started_s
            self._is_inside = False
            for kernel, share in zip(program.kernels, program.shares(), strict=True):
                self.seconds[part_of(kernel.address)] += duration_s * float(share)

        return run_timed


@contextmanager
def profiled(attention: CompiledAttention) -> Iterator[StepProfile]:
    """Time the parts of every step that runs inside; `attention` is that of the executor."""
    profile = StepProfile()
    attention_kernels = attention.kernel_addresses

    product_kernels = {compile_product(bits, True, detect()).address for bits in (4, 8)}

    def part_of_kernel(address: int, *_others: int) -> str:
        if address in product_kernels:
            return "products"
        return "attention" if address in attention_kernels else "other_kernels"

    with ExitStack() as stack:

        def time_calls(owner: Any, name: str, part_of: Callable[..., str]) -> None:
            stack.enter_context(mock.patch.object(owner, name, profile.timed(part_of, getattr(owner, name))))

        time_calls(Linear, "__call__", lambda *_: "products")
        time_calls(TorchAttention, "attend_into", lambda *_: "attention")
        time_calls(Sampler, "sample", lambda *_: "sampling")
        time_calls(compiled_ops, "run_on_team", part_of_kernel)
        stack.enter_context(mock.patch.object(Program, "run", profile.timed_program(part_of_kernel, Program.run)))
        yield profile
