"""Vectors as numba values: one value holds a whole attention head, and LLVM maps it on registers.

Numba vectorises loops, but keeps the accumulators of a loop over keys in memory; a vector value stays in registers.
Vectors wider than one head were tried and spilled. Addresses are integers; `lanes` is a compile-time constant.
"""

# llvmlite has no type hints, numba only some.
# mypy: disable-error-code="import-untyped, misc, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

_F32, _I16, _I32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
_CONTRACT, _REASSOCIATE = ("contract",), ("reassoc", "contract")


class Lanes(types.Type):
    """The type of a vector of `count` float32."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"Lanes({count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(_F32, lanes.count))


def _vector(count: int, element: ir.Type = _F32) -> ir.VectorType:
    return ir.VectorType(element, count)


def _indices(values: list[int]) -> ir.Constant:
    return ir.Constant(_vector(len(values), _I32), values)


def _shuffle(builder: Any, vector: Any, indices: list[int]) -> Any:
    return builder.shuffle_vector(vector, vector, _indices(indices))


def _load_vector(builder: Any, address: Any, count: int, element: ir.Type) -> Any:
    load = builder.load(builder.inttoptr(address, _vector(count, element).as_pointer()))
    load.align = element.width // 8 if isinstance(element, ir.IntType) else 4
    return load


def _widen(builder: Any, halves: Any, count: int) -> Any:
    """bf16 is the upper half of a float32."""
    words = builder.zext(halves, _vector(count, _I32))
    return builder.bitcast(builder.shl(words, ir.Constant(words.type, [16] * count)), _vector(count))


_Signature = tuple[Any, Callable[..., Any]]


@intrinsic(prefer_literal=True)
def load(_context: Any, _address: Any, lanes: Any, is_bf16: Any) -> _Signature:
    """load(address, lanes, is_bf16): read consecutive float32 or bf16 values."""
    count, halves = lanes.literal_value, bool(is_bf16.literal_value)

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        if not halves:
            return _load_vector(builder, args[0], count, _F32)
        return _widen(builder, _load_vector(builder, args[0], count, _I16), count)

    return Lanes(count)(types.int64, lanes, is_bf16), generate


@intrinsic(prefer_literal=True)
def splat(_context: Any, _value: Any, lanes: Any) -> _Signature:
    """splat(value, lanes): the same float32 in every lane."""
    count = lanes.literal_value

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        single = builder.insert_element(ir.Constant(_vector(1), ir.Undefined), args[0], _I32(0))
        return _shuffle(builder, single, [0] * count)

    return Lanes(count)(types.float32, lanes), generate


@intrinsic
def sum_lanes(_context: Any, x: Any) -> _Signature:
    """sum_lanes(x): add up the lanes, in any order but always the same."""
    count = x.count
    function_type = ir.FunctionType(_F32, [_F32, _vector(count)])

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        add_up = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.vector.reduce.fadd.v{count}f32")
        return builder.call(add_up, [_F32(0.0), args[0]], fastmath=_REASSOCIATE)

    return types.float32(x), generate


@intrinsic(prefer_literal=True)
def store(_context: Any, _address: Any, vector: Any, is_bf16: Any) -> _Signature:
    """store(address, vector, is_bf16): write a vector, rounded to the nearest bf16 (ties to even) where asked."""
    halves = bool(is_bf16.literal_value)

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        value = _narrow(builder, args[1], vector.count) if halves else args[1]
        written = builder.store(value, builder.inttoptr(args[0], value.type.as_pointer()))
        written.align = 2 if halves else 4
        return context.get_dummy_value()

    return types.none(types.int64, vector, is_bf16), generate


def _narrow(builder: Any, vector: Any, count: int) -> Any:
    words = builder.bitcast(vector, _vector(count, _I32))
    shift = ir.Constant(words.type, [16] * count)
    is_odd = builder.and_(builder.lshr(words, shift), ir.Constant(words.type, [1] * count))
    rounded = builder.add(words, builder.add(is_odd, ir.Constant(words.type, [0x7FFF] * count)))
    return builder.trunc(builder.lshr(rounded, shift), _vector(count, _I16))


@intrinsic
def multiply(_context: Any, x: Any, _y: Any) -> _Signature:
    """multiply(x, y)"""
    return x(x, x), lambda _c, builder, _s, args: builder.fmul(*args, flags=_CONTRACT)


@intrinsic
def multiply_add(_context: Any, x: Any, _y: Any, _z: Any) -> _Signature:
    """multiply_add(x, y, z): x * y + z in one rounding where the machine has it."""

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.fadd(builder.fmul(args[0], args[1], flags=_CONTRACT), args[2], flags=_CONTRACT)

    return x(x, x, x), generate


@intrinsic
def negate(_context: Any, x: Any) -> _Signature:
    """negate(x)"""
    return x(x), lambda _c, builder, _s, args: builder.fneg(args[0])


@intrinsic
def prefetch(_context: Any, _address: Any) -> _Signature:
    """prefetch(address): ask for the cache line at an address before it is needed."""
    byte_pointer = ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, _I32, _I32, _I32])

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], function_type)
        builder.call(function, [builder.inttoptr(args[0], byte_pointer), _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@intrinsic
def bits_as_f32(_context: Any, _bits: Any) -> _Signature:
    """bits_as_f32(bits): read a 32-bit pattern as a float32."""
    return types.float32(types.uint32), lambda _c, builder, _s, args: builder.bitcast(args[0], _F32)


def _pointer_to(element: Any, layout: ir.Type) -> Any:
    @intrinsic
    def pointer(_context: Any, _address: Any) -> _Signature:
        """pointer(address): a typed pointer, for `numba.carray`."""
        target = layout.as_pointer()
        signature = types.CPointer(element)(types.int64)
        return signature, lambda _c, builder, _s, args: builder.inttoptr(args[0], target)

    return pointer


f32_pointer = _pointer_to(types.float32, _F32)
i32_pointer = _pointer_to(types.int32, _I32)
i64_pointer = _pointer_to(types.int64, ir.IntType(64))
