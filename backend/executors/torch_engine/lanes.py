"""Vectors as numba values: one value holds a whole attention head, and LLVM maps it on registers.

Numba vectorises loops, but keeps the accumulators of a loop over keys in memory; a vector value stays in registers.
Vectors wider than one head were tried and spilled. Addresses are integers; `lanes` is a compile-time constant.
"""

# llvmlite has no type hints, numba only some.
# mypy: disable-error-code="import-untyped, misc, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model


class _BFloatType(ir.Type):
    """LLVM's bf16, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"


_F32, _BF16, _I16, _I32 = ir.FloatType(), _BFloatType(), ir.IntType(16), ir.IntType(32)
_ZMM = 16  # lanes of AVX-512's registers
_FOLDED = 16  # lanes into which a product is added up before they are added up
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


def _store_vector(builder: Any, address: Any, vector: Any) -> None:
    written = builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()))
    written.align = 2 if vector.type.element in (_I16, _BF16) else 4


def _widen(builder: Any, halves: Any, count: int) -> Any:
    return _lower_half(builder, builder.zext(halves, _vector(count, _I32)))


def _lower_half(builder: Any, words: Any) -> Any:
    """bf16 is the upper half of a float32."""
    shifted = builder.shl(words, ir.Constant(words.type, [16] * words.type.count))
    return builder.bitcast(shifted, _vector(words.type.count))


def _upper_half(builder: Any, words: Any) -> Any:
    kept = builder.and_(words, ir.Constant(words.type, [-0x10000] * words.type.count))
    return builder.bitcast(kept, _vector(words.type.count))


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
        _store_vector(builder, args[0], _narrow(builder, args[1], vector.count) if halves else args[1])
        return context.get_dummy_value()

    return types.none(types.int64, vector, is_bf16), generate


@intrinsic(prefer_literal=True)
def store_bf16(_context: Any, _address: Any, vector: Any, is_native: Any) -> _Signature:
    """store_bf16(address, vector, is_native): as `store`; `is_native`: rounded by AVX-512 BF16."""

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        if is_native.literal_value:
            value = builder.fptrunc(args[1], _vector(vector.count, _BF16))
        else:  # LLVM would call a function for each lane
            value = _narrow(builder, args[1], vector.count)
        _store_vector(builder, args[0], value)
        return context.get_dummy_value()

    return types.none(types.int64, vector, is_native), generate


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
def subtract(_context: Any, x: Any, _y: Any) -> _Signature:
    """subtract(x, y)"""
    return x(x, x), lambda _c, builder, _s, args: builder.fsub(*args)


@intrinsic
def divide(_context: Any, x: Any, _y: Any) -> _Signature:
    """divide(x, y)"""
    return x(x, x), lambda _c, builder, _s, args: builder.fdiv(*args)


@intrinsic
def add(_context: Any, x: Any, _y: Any) -> _Signature:
    """add(x, y)"""
    return x(x, x), lambda _c, builder, _s, args: builder.fadd(*args)


@intrinsic
def maximum(_context: Any, x: Any, _y: Any) -> _Signature:
    """maximum(x, y): lane by lane, of numbers that are not NaN."""
    return x(x, x), lambda _c, builder, _s, args: _select(builder, ">", args[0], args[1])


@intrinsic
def max_lanes(_context: Any, x: Any) -> _Signature:
    """max_lanes(x): the highest lane."""
    function_type = ir.FunctionType(_F32, [_vector(x.count)])

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        name = f"llvm.vector.reduce.fmax.v{x.count}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)

    return types.float32(x), generate


@intrinsic
def first_lane(_context: Any, x: Any) -> _Signature:
    """first_lane(x)"""
    return types.float32(x), lambda _c, builder, _s, args: builder.extract_element(args[0], _I32(0))


@intrinsic
def exp(_context: Any, x: Any) -> _Signature:
    """exp(x) by Cephes' polynomial, relative error 2e-7; x is held within [-87, 88]."""
    return x(x), lambda _c, builder, _s, args: _exp(builder, args[0], x.count)


_EXP_COEFFICIENTS = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _exp(builder: Any, x: Any, count: int) -> Any:
    def every(value: float) -> Any:
        return ir.Constant(x.type, [value] * count)

    def fused(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)

    x = _select(builder, ">", _select(builder, "<", x, every(88.0)), every(-87.0))
    floor_type = ir.FunctionType(x.type, [x.type])
    floor = cgutils.get_or_insert_function(builder.module, floor_type, f"llvm.floor.v{count}f32")
    power = builder.call(floor, [fused(x, every(1.44269504), every(0.5))])
    r = fused(power, every(2.12194440e-4), fused(power, every(-0.693359375), x))
    p = every(1.9875691500e-4)
    for coefficient in _EXP_COEFFICIENTS:
        p = fused(p, r, every(coefficient))
    p = fused(builder.fmul(p, r), r, builder.fadd(r, every(1.0)))
    words = _vector(count, _I32)
    exponent = builder.add(builder.fptosi(power, words), ir.Constant(words, [127] * count))
    return builder.fmul(p, builder.bitcast(builder.shl(exponent, ir.Constant(words, [23] * count)), x.type))


@intrinsic
def exp2(_context: Any, x: Any) -> _Signature:
    """exp2(x) for x up to 0, relative error 4e-6: for weights that are rounded to bf16. x is held above -125."""
    return x(x), lambda _c, builder, _s, args: _exp2(builder, args[0], x.count)


_EXP2_COEFFICIENTS = (0.00957010132, 0.0559178624, 0.240247449, 0.693121814, 0.999999261)


def _exp2(builder: Any, x: Any, count: int) -> Any:
    def every(value: float) -> Any:
        return ir.Constant(x.type, [value] * count)

    x = _select(builder, ">", x, every(-125.0))
    rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), f"llvm.rint.v{count}f32")
    power = builder.call(rint, [x])
    r = builder.fsub(x, power)
    p = every(_EXP2_COEFFICIENTS[0])
    for coefficient in _EXP2_COEFFICIENTS[1:]:
        p = builder.fadd(builder.fmul(p, r, flags=_CONTRACT), every(coefficient), flags=_CONTRACT)
    words = _vector(count, _I32)
    exponent = builder.shl(builder.fptosi(power, words), ir.Constant(words, [23] * count))
    return builder.bitcast(builder.add(builder.bitcast(p, words), exponent), x.type)


def _select(builder: Any, comparison: str, x: Any, y: Any) -> Any:
    """Return, lane by lane, x where it compares so to y, and y elsewhere."""
    return builder.select(builder.fcmp_ordered(comparison, x, y), x, y)


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
        builder.call(function, [builder.inttoptr(args[0], byte_pointer), _I32(0), _I32(2), _I32(1)])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@intrinsic(prefer_literal=True)
def zero_heads(_context: Any, num_heads: Any, lanes: Any) -> _Signature:
    """zero_heads(num_heads, lanes): a tuple of zero vectors, one per head; they stay in registers."""
    result = types.UniTuple(Lanes(lanes.literal_value), num_heads.literal_value)

    def generate(context: Any, builder: Any, _s: Any, _a: Any) -> Any:
        zero = ir.Constant(_vector(lanes.literal_value), [0.0] * lanes.literal_value)
        return context.make_tuple(builder, result, [zero] * num_heads.literal_value)

    return result(num_heads, lanes), generate


@intrinsic
def add_weighted(_context: Any, totals: Any, _weights: Any, _stride: Any, _value: Any) -> _Signature:
    """add_weighted(totals, weights, stride, value): total h += value * (the float32 at `weights + h * stride`)."""
    count = totals.dtype.count

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        vectors, address, stride, value = args
        sums = []
        for total in cgutils.unpack_tuple(builder, vectors):
            weight = builder.load(builder.inttoptr(address, _F32.as_pointer()))
            single = builder.insert_element(ir.Constant(_vector(1), ir.Undefined), weight, _I32(0))
            product = builder.fmul(_shuffle(builder, single, [0] * count), value, flags=_CONTRACT)
            sums.append(builder.fadd(product, total, flags=_CONTRACT))
            address = builder.add(address, stride)
        return context.make_tuple(builder, totals, sums)

    return totals(totals, types.int64, types.int64, totals.dtype), generate


@intrinsic(prefer_literal=True)
def add_pair_products(
    _context: Any, totals: Any, _pairs: Any, _stride: Any, _columns: Any, is_native: Any
) -> _Signature:
    """add_pair_products(totals, pairs, stride, columns, is_native): total h += a * c + b * d in every lane.

    a, b: the two bf16 at `pairs + h * stride`; c, d: those in the lane of `columns`. `is_native`: by AVX-512 BF16.
    """
    add_products = _add_pair_products if is_native.literal_value else _add_widened_products

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        vectors, address, stride, vector, _ = args
        sums = []
        for total in cgutils.unpack_tuple(builder, vectors):
            pair = builder.load(builder.inttoptr(address, _I32.as_pointer()))
            single = builder.insert_element(ir.Constant(_vector(1, _I32), ir.Undefined), pair, _I32(0))
            sums.append(add_products(builder, total, single, vector))
            address = builder.add(address, stride)
        return context.make_tuple(builder, totals, sums)

    return totals(totals, types.int64, types.int64, totals.dtype, is_native), generate


@intrinsic
def add_scaled(_context: Any, totals: Any, _parts: Any, _scale: Any) -> _Signature:
    """add_scaled(totals, parts, scale): total h += part h * scale in every lane."""

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        vectors, parts, scale = args
        pairs = zip(cgutils.unpack_tuple(builder, vectors), cgutils.unpack_tuple(builder, parts), strict=True)
        sums = [builder.fadd(builder.fmul(p, scale, flags=_CONTRACT), t, flags=_CONTRACT) for t, p in pairs]
        return context.make_tuple(builder, totals, sums)

    return totals(totals, totals, totals.dtype), generate


@intrinsic(prefer_literal=True)
def add_code_products(
    _context: Any, totals: Any, _x: Any, _stride: Any, _words: Any, _scale: Any, _minimum: Any, bits: Any
) -> _Signature:
    """add_code_products(totals, x, stride, words, scale, minimum, bits): total h += x h . (code * scale + minimum).

    Lane i multiplies the codes in the i-th word at `words`, in the order of their columns, by the float32 at
    `x + h * stride` onwards. A word is 32 bits of eight 4-bit codes, or 16 bits of two signed 8-bit codes.
    """
    count, unpack = totals.dtype.count, _UNPACKERS[bits.literal_value]

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        vectors, x, stride, words, scale, minimum, _ = args
        sums = list(cgutils.unpack_tuple(builder, vectors))
        for column, code in enumerate(unpack(builder, words, count)):
            numbers = builder.sitofp(code, _vector(count))
            value = builder.fadd(builder.fmul(numbers, scale, flags=_CONTRACT), minimum, flags=_CONTRACT)
            address = builder.add(x, ir.Constant(x.type, column * 4))
            for h, total in enumerate(sums):
                product = builder.fmul(_splat_from(builder, address, count), value, flags=_CONTRACT)
                sums[h] = builder.fadd(product, total, flags=_CONTRACT)
                address = builder.add(address, stride)
        return context.make_tuple(builder, totals, sums)

    lanes = totals.dtype
    return totals(totals, types.int64, types.int64, types.int64, lanes, lanes, bits), generate


def _nibbles(builder: Any, words: Any, count: int) -> list[Any]:
    """Return the eight codes of each word; `compiled_product.four_bit_tiles` gives their order."""
    loaded = _load_vector(builder, words, count, _I32)
    mask = ir.Constant(loaded.type, [15] * count)
    shifts = (16 * pair + 4 * s for s in range(4) for pair in range(2))
    return [builder.and_(builder.lshr(loaded, ir.Constant(loaded.type, [n] * count)), mask) for n in shifts]


def _signed_bytes(builder: Any, words: Any, count: int) -> list[Any]:
    """Return both bytes of each word, signed."""
    loaded = builder.sext(_load_vector(builder, words, count, _I16), _vector(count, _I32))
    eight, far = (ir.Constant(loaded.type, [n] * count) for n in (8, 24))
    return [builder.ashr(builder.shl(loaded, far), far), builder.ashr(loaded, eight)]


_UNPACKERS = {4: _nibbles, 8: _signed_bytes}


def _splat_from(builder: Any, address: Any, count: int) -> Any:
    """Return the float32 at an address in every lane."""
    value = builder.load(builder.inttoptr(address, _F32.as_pointer()))
    single = builder.insert_element(ir.Constant(_vector(1), ir.Undefined), value, _I32(0))
    return _shuffle(builder, single, [0] * count)


@intrinsic
def load_nibble_pairs(_context: Any, _address: Any) -> _Signature:
    """load_nibble_pairs(address): read 32 words of four codes of 4 bits; vector s holds the s-th codes as bf16 pairs.

    Needs AVX-512 BW: one shift and one table look-up for 32 codes. The table repeats itself, as the fifth bit of an
    index is the next code's.
    """
    result = types.UniTuple(Lanes(_ZMM), 4)

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        words = _load_vector(builder, args[0], 2 * _ZMM, _I16)
        table = ir.Constant(words.type, [_bf16_bits(i % 16) for i in range(32)])
        function_type = ir.FunctionType(words.type, [words.type, words.type])
        name = "llvm.x86.avx512.permvar.hi.512"
        look_up = cgutils.get_or_insert_function(builder.module, function_type, name)
        codes = (builder.lshr(words, ir.Constant(words.type, [4 * s] * 32)) if s else words for s in range(4))
        vectors = [builder.bitcast(builder.call(look_up, [table, code]), _vector(_ZMM)) for code in codes]
        return context.make_tuple(builder, result, vectors)

    return result(types.int64), generate


def _bf16_bits(value: float) -> int:
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits >> 16


@intrinsic
def load_byte_pairs(_context: Any, _address: Any) -> _Signature:
    """load_byte_pairs(address): read 32 signed bytes as 16 pairs of bf16, exactly."""

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        codes = _load_vector(builder, args[0], 2 * _ZMM, ir.IntType(8))
        halves = builder.fptrunc(builder.sitofp(codes, _vector(2 * _ZMM)), _vector(2 * _ZMM, _BF16))
        return builder.bitcast(halves, _vector(_ZMM))

    return Lanes(_ZMM)(types.int64), generate


@intrinsic(prefer_literal=True)
def load_float16(_context: Any, _address: Any, lanes: Any) -> _Signature:
    """load_float16(address, lanes): read consecutive float16 as float32."""
    count = lanes.literal_value

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        halves = builder.bitcast(_load_vector(builder, args[0], count, _I16), _vector(count, ir.HalfType()))
        return builder.fpext(halves, _vector(count))

    return Lanes(count)(types.int64, lanes), generate


def _add_pair_products(builder: Any, total: Any, pair: Any, vector: Any) -> Any:
    halves = _vector(2 * _ZMM, _BF16)
    function_type = ir.FunctionType(_vector(_ZMM), [_vector(_ZMM), halves, halves])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    add_products = cgutils.get_or_insert_function(builder.module, function_type, name)
    factor = builder.bitcast(_shuffle(builder, pair, [0] * _ZMM), halves)
    parts = []
    for i in range(0, total.type.count, _ZMM):
        lanes = list(range(i, i + _ZMM))
        part = builder.bitcast(_shuffle(builder, vector, lanes), halves)
        parts.append(builder.call(add_products, [_shuffle(builder, total, lanes), factor, part]))
    return _join(builder, parts)


def _join(builder: Any, parts: list[Any]) -> Any:
    """Lay vectors of the same length one after the other."""
    joined, *rest = parts
    for part in rest:
        size, added = joined.type.count, part.type.count
        widened = _shuffle(builder, part, [i % added for i in range(size)])  # a shuffle takes vectors of one length
        joined = builder.shuffle_vector(joined, widened, _indices(list(range(size + added))))
    return joined


def _add_widened_products(builder: Any, total: Any, pair: Any, vector: Any) -> Any:
    words = builder.bitcast(vector, _vector(total.type.count, _I32))
    for take_half in (_lower_half, _upper_half):
        factor = _shuffle(builder, take_half(builder, pair), [0] * total.type.count)
        product = builder.fmul(factor, take_half(builder, words), flags=_CONTRACT)
        total = builder.fadd(product, total, flags=_CONTRACT)
    return total


@intrinsic(prefer_literal=True)
def load_interleaved(_context: Any, _first: Any, _second: Any, lanes: Any) -> _Signature:
    """load_interleaved(first, second, lanes): lane i holds two bf16, the i-th from each address."""
    count = lanes.literal_value

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        first, second = (_load_vector(builder, address, count, _I16) for address in args[:2])
        indices = [index for i in range(count) for index in (i, count + i)]
        return builder.bitcast(builder.shuffle_vector(first, second, _indices(indices)), _vector(count))

    return Lanes(count)(types.int64, types.int64, lanes), generate


@intrinsic
def turn(_context: Any, _addresses: Any, _offset: Any, _target: Any, _stride: Any) -> _Signature:
    """turn(addresses, offset, target, stride): write 8 columns of 16 words of 32 bits, `stride` bytes apart.

    Column i holds the i-th words at `offset` from each of the 16 addresses (int64).
    """

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        addresses, offset, target, stride = args
        int64 = addresses.type
        rows = []
        for i in range(16):
            at = builder.inttoptr(builder.add(addresses, ir.Constant(int64, i * 8)), int64.as_pointer())
            rows.append(_load_vector(builder, builder.add(builder.load(at), offset), 8, _I32))
        columns = [_join(builder, [rows[i], rows[i + 8]]) for i in range(8)]
        for step in (1, 2, 4):  # swap ever larger off-diagonal blocks of both 8 by 8 halves
            low = [i + 16 - step if i & step else i for i in range(16)]
            high = [i + 16 if i & step else i + step for i in range(16)]
            for i in range(8):
                if not i & step:
                    pair = columns[i], columns[i + step]
                    columns[i] = builder.shuffle_vector(*pair, _indices(low))
                    columns[i + step] = builder.shuffle_vector(*pair, _indices(high))
        for column in columns:
            _store_vector(builder, target, column)
            target = builder.add(target, stride)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def store_heads(_context: Any, _address: Any, _stride: Any, totals: Any, is_bf16: Any) -> _Signature:
    """store_heads(address, stride, totals, is_bf16): write vector h of a tuple at `address + h * stride`."""
    halves, count = bool(is_bf16.literal_value), totals.dtype.count

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        address, stride, vectors, _ = args
        for total in cgutils.unpack_tuple(builder, vectors):
            _store_vector(builder, address, _narrow(builder, total, count) if halves else total)
            address = builder.add(address, stride)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, totals, is_bf16), generate


@intrinsic
def add_heads(_context: Any, _address: Any, _stride: Any, totals: Any) -> _Signature:
    """add_heads(address, stride, totals): add vector h of a tuple to the float32 at `address + h * stride`."""
    count = totals.dtype.count

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        address, stride, vectors = args
        for total in cgutils.unpack_tuple(builder, vectors):
            sums = builder.fadd(_load_vector(builder, address, count, _F32), total)
            _store_vector(builder, address, sums)
            address = builder.add(address, stride)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, totals), generate


@intrinsic(prefer_literal=True)
def dot_heads(_context: Any, _queries: Any, key: Any, _scores: Any, _stride: Any, num_heads: Any) -> _Signature:
    """dot_heads(queries, key, scores, stride, num_heads): write key . query h, float32, at `scores + h * stride`.

    The queries are float32 and lie one after the other. A key is folded into a width that divides it.
    """
    count, width = key.count, math.gcd(key.count, _FOLDED)

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        queries, vector, scores, stride, _ = args
        slices = [_shuffle(builder, vector, list(range(i, i + width))) for i in range(0, count, width)]
        function_type = ir.FunctionType(_F32, [_F32, _vector(width)])
        name = f"llvm.vector.reduce.fadd.v{width}f32"
        add_up = cgutils.get_or_insert_function(builder.module, function_type, name)
        for _head in range(num_heads.literal_value):
            folded = None
            for part in slices:
                product = builder.fmul(_load_vector(builder, queries, width, _F32), part, flags=_CONTRACT)
                folded = product if folded is None else builder.fadd(product, folded, flags=_CONTRACT)
                queries = builder.add(queries, ir.Constant(queries.type, width * 4))
            score = builder.call(add_up, [_F32(0.0), folded], fastmath=_REASSOCIATE)
            builder.store(score, builder.inttoptr(scores, _F32.as_pointer()))
            scores = builder.add(scores, stride)
        return context.get_dummy_value()

    return types.none(types.int64, key, types.int64, types.int64, num_heads), generate


@intrinsic
def call_kernel(_context: Any, _function: Any, _block: Any) -> _Signature:
    """call_kernel(function, block): call the `void f(void *block)` at an address."""
    pointer = ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [pointer])

    def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
        function = builder.inttoptr(args[0], function_type.as_pointer())
        builder.call(function, [builder.inttoptr(args[1], pointer)])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def read_ticks(_context: Any) -> _Signature:
    """read_ticks(): the processor's time stamp."""
    function_type = ir.FunctionType(ir.IntType(64), [])

    def generate(_c: Any, builder: Any, _s: Any, _a: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.readcyclecounter")
        return builder.call(function, [])

    return types.int64(), generate


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
