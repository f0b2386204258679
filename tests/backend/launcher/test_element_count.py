"""The machine code that replaces Triton's count of elements, run beside the original."""

from __future__ import annotations

import ctypes
import math
import mmap
import platform
from collections.abc import Callable, Iterator, Sequence

import pytest

from backend.launcher.element_count import COUNT_ELEMENTS, COUNT_ELEMENTS_IN_BOUNDS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="runs code for x86-64")
BOUND = 2**32
ORDINARY = [[], [1], [7], [0], [2, 3], [2, 0, 3], [BOUND - 1], [1] * 100, [-1], [4, -1]]
TOO_LARGE = [[2**62 + 1], [2**62], [-(2**62) + 1], [2**63 - 1], [-(2**63)], [BOUND], [BOUND + 1], [-2]]
TOO_LARGE += [[2**31, 2], [2**16] * 2, [2**62, 2**62], [0, 2**62], [2, -3], [-2, -2]]

Vector = ctypes.c_void_p * 2  # begin and end, as std::vector has them
Count = Callable[[Sequence[int]], int]


def counter(code: bytes) -> Iterator[Count]:
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))

    def count(dims: Sequence[int]) -> int:
        values = (ctypes.c_int64 * len(dims))(*dims)
        start = ctypes.addressof(values)
        return int(run(ctypes.byref(Vector(start, start + ctypes.sizeof(values)))))

    yield count


@pytest.fixture
def ours() -> Iterator[Count]:
    yield from counter(COUNT_ELEMENTS_IN_BOUNDS)


@pytest.fixture
def tritons() -> Iterator[Count]:
    yield from counter(COUNT_ELEMENTS)


@pytest.mark.parametrize("dims", ORDINARY, ids=lambda dims: str(dims)[:20])
def test_what_a_tensor_can_have_is_counted_as_before(dims: list[int], ours: Count, tritons: Count) -> None:
    expected = -1 if -1 in dims else math.prod(dims) if dims else 0
    assert ours(dims) == tritons(dims) == expected


@pytest.mark.parametrize("dims", TOO_LARGE, ids=str)
def test_what_no_tensor_can_have_is_not_known(dims: list[int], ours: Count) -> None:
    assert ours(dims) == -1


def test_the_original_overflows(tritons: Count) -> None:
    assert tritons([2**62 + 1]) * 4 % 2**64 == 4


def test_both_take_the_same_room() -> None:
    assert len(COUNT_ELEMENTS_IN_BOUNDS) == len(COUNT_ELEMENTS)
