"""Vectors of eight float32 in numba's code. Each operation is rounded as stated, whatever registers the processor has.

v = load(array, i)          array[i : i + 8], of one dimension          store(array, i, v)
v = load_at(address, i)     the same from float32 that begin at an address of memory; one_at(address, i) is one number
splat(number)               eight times the number                      x + y    x - y    x * y    x / y    each rounded
fma(x, y, z)                x y + z, rounded once                       exp(x)   x <= 0          sqrt(x)
absolute(x)                 larger(x, y)                                choose(x, y, z)     y where x >= 0, else z
first_lanes(x, n, y)        the first n numbers of x, then those of y   one(array, i)       array[i] for i >= 0
add_in_order(s, array, i)   ((s + array[i]) + array[i + 1]) + ... + array[i + 7], each rounded
sums(a, b, c, d, e, i, f, k)    f[k : k + 4] = [sum(a), sum(b), sum(c), sum(d)] + e[i : i + 4]
total(x)                        the sum of the eight numbers            largest(x)          the largest of them
prefetch(array, i)              array[i] will be needed soon

zeros_wide()  load_wide(array, i)  splat_wide(array, i)     vectors of WIDE numbers: 0, array[i : i + WIDE], array[i];
fill_wide(number)  load_wide_at(address, i)     WIDE times the number; WIDE numbers that begin at an address of memory.
                                                `store`, `fma` and + - * / take all of them, too
exchange(array, i, j)           of LINE bytes of integers from i on, and from j on, the smaller to i, the larger to j
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, extending
from numba.core.extending import models, overload, register_model

intrinsic: Any = extending.intrinsic  # calls differ from the definitions: they lack the argument `typing`

WIDTH = 8  # the registers of most processors; wider ones compute the same bits
AVX512 = bool(binding.get_host_cpu_features().get("avx512vl"))  # 32 registers, of 16 numbers
WIDE = 2 * WIDTH if AVX512 else WIDTH
LINE = 64  # bytes
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(ir.IntType(32), WIDTH)
_QUAD = ir.VectorType(ir.FloatType(), WIDTH // 2)


Typed = tuple[Any, Callable[..., Any]]  # a numba signature and the function that writes LLVM code


class _Vector(types.Type):
    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"float32x{lanes}")
        self.kind = ir.VectorType(ir.FloatType(), lanes)


_vector, _wide = _Vector(WIDTH), _Vector(WIDE)


@register_model(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any):
        super().__init__(manager, numba_type, numba_type.kind)


def _pointer(context: Any, builder: Any, array_type: Any, place: Sequence[Any], kind: Any) -> Any:
    """Address of array[index], for place = (array, index)."""
    array, index = place
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _read(builder: Any, pointer: Any) -> Any:
    value = builder.load(pointer)
    value.align = 4
    return value


def _load(vector: _Vector, array: Any) -> Typed:
    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, _pointer(context, builder, signature.args[0], arguments, vector.kind))

    return vector(array, types.intp), made


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Typed:
    """array[index : index + 8]"""
    return _load(_vector, array)


@intrinsic
def load_wide(typing: Any, array: Any, index: Any) -> Typed:
    """array[index : index + WIDE]"""
    return _load(_wide, array)


def _element(builder: Any, address: Any, index: Any) -> Any:
    """Address of float32 number `index` from an address on."""
    return builder.gep(builder.inttoptr(address, ir.FloatType().as_pointer()), [index])


@intrinsic
def load_at(typing: Any, address: Any, index: Any) -> Typed:
    """Eight float32 from number `index` on, of those that begin at `address`."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, builder.bitcast(_element(builder, *arguments), _FLOATS.as_pointer()))

    return _vector(types.int64, types.intp), made


@intrinsic
def load_wide_at(typing: Any, address: Any, index: Any) -> Typed:
    """WIDE float32 from number `index` on, of those that begin at `address`."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, builder.bitcast(_element(builder, *arguments), _wide.kind.as_pointer()))

    return _wide(types.int64, types.intp), made


@intrinsic
def one_at(typing: Any, address: Any, index: Any) -> Typed:
    """Number `index` of the float32 that begin at `address`."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, _element(builder, *arguments))

    return types.float32(types.int64, types.intp), made


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Typed:
    """array[index : index + lanes of the vector] <- vector"""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[:2], vector.kind)
        builder.store(arguments[2], pointer, align=4)

    return types.void(array, types.intp, vector), made


@intrinsic
def exchange(typing: Any, array: Any, i: Any, j: Any) -> Typed:
    """array[i : i + n], array[j : j + n] <- min and max of each pair, for n signed integers in LINE bytes"""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of, bits = signature.args[0], signature.args[0].dtype.bitwidth
        kind = ir.VectorType(ir.IntType(bits), LINE * 8 // bits)
        low, high = (_pointer(context, builder, of, (arguments[0], place), kind) for place in arguments[1:])
        a, b = (builder.load(pointer, align=bits // 8) for pointer in (low, high))
        ordered = builder.icmp_signed("<", a, b)
        builder.store(builder.select(ordered, a, b), low, align=bits // 8)
        builder.store(builder.select(ordered, b, a), high, align=bits // 8)

    return types.void(array, types.intp, types.intp), made


@intrinsic
def one(typing: Any, array: Any, index: Any) -> Typed:
    """array[index] for index >= 0. Python's index may be negative, and the processor would look at each."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, _pointer(context, builder, signature.args[0], arguments, ir.FloatType()))

    return types.float32(array, types.intp), made


@intrinsic
def add_in_order(typing: Any, number: Any, array: Any, index: Any) -> Typed:
    """((number + array[index]) + array[index + 1]) + ... + array[index + 7], each rounded."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, array_, first = arguments
        place = _pointer(context, builder, signature.args[1], (array_, first), ir.FloatType())
        for k in range(WIDTH):
            total = builder.fadd(total, _read(builder, builder.gep(place, [ir.Constant(ir.IntType(64), k)])))
        return total

    return types.float32(types.float32, array, types.intp), made


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Typed:
    """Ask memory for array[index], without waiting."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments, ir.IntType(8))
        flags = [ir.IntType(32)] * 3
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *flags])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [pointer, *(ir.Constant(flag, number) for flag, number in zip(flags, (0, 2, 1)))])

    return types.void(array, types.intp), made


def _constant(value: float, kind: Any = _FLOATS) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _splat(builder: Any, number: Any, vector: _Vector) -> Any:
    none, first = ir.Constant(vector.kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(none, number, first)
    return builder.shuffle_vector(one, none, _constant(0, ir.VectorType(ir.IntType(32), vector.kind.count)))


def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(x.type, [x.type] * 3)
    name = f"llvm.fma.v{x.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])


@intrinsic
def splat(typing: Any, number: Any) -> Typed:
    """Eight times the number."""
    return _vector(types.float32), lambda context, builder, signature, arguments: _splat(builder, arguments[0], _vector)


@intrinsic
def fill_wide(typing: Any, number: Any) -> Typed:
    """WIDE times the number."""
    return _wide(types.float32), lambda context, builder, signature, arguments: _splat(builder, arguments[0], _wide)


@intrinsic
def splat_wide(typing: Any, array: Any, index: Any) -> Typed:
    """WIDE times array[index]."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = _read(builder, _pointer(context, builder, signature.args[0], arguments, ir.FloatType()))
        return _splat(builder, number, _wide)

    return _wide(array, types.intp), made


@intrinsic
def zeros_wide(typing: Any) -> Typed:
    """WIDE zeros."""
    return _wide(), lambda context, builder, signature, arguments: _constant(0.0, _wide.kind)


@intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Typed:
    """x y + z, rounded once."""
    return x(x, x, x), lambda context, builder, signature, arguments: _fma(builder, *arguments)


@intrinsic
def sqrt(typing: Any, x: Any) -> Typed:
    """The square roots, correctly rounded."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [_FLOATS])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.v8f32"), arguments)

    return _vector(_vector), made


@intrinsic
def absolute(typing: Any, x: Any) -> Typed:
    """The absolute values."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [_FLOATS])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fabs.v8f32"), arguments)

    return _vector(_vector), made


@intrinsic
def choose(typing: Any, x: Any, y: Any, z: Any) -> Typed:
    """y where x >= 0, else z."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y, z = arguments
        return builder.select(builder.fcmp_ordered(">=", x, _constant(0.0)), y, z)

    return _vector(_vector, _vector, _vector), made


@intrinsic
def first_lanes(typing: Any, x: Any, count: Any, y: Any) -> Typed:
    """The first `count` numbers of x, then those of y."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, count, y = arguments
        lanes = ir.VectorType(ir.IntType(64), WIDTH)
        none = ir.Constant(lanes, ir.Undefined)
        limit = builder.insert_element(none, count, ir.Constant(ir.IntType(32), 0))
        limit = builder.shuffle_vector(limit, none, _constant(0, _INTS))
        return builder.select(builder.icmp_signed("<", ir.Constant(lanes, list(range(WIDTH))), limit), x, y)

    return _vector(_vector, types.int64, _vector), made


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


@intrinsic
def larger(typing: Any, x: Any, y: Any) -> Typed:
    """The larger number of each pair."""
    return _vector(_vector, _vector), lambda context, builder, signature, arguments: _larger(builder, *arguments)


@intrinsic
def largest(typing: Any, x: Any) -> Typed:
    """The largest of the eight numbers, a float32."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        for step in (4, 2, 1):
            turned = ir.Constant(_INTS, [(place + step) % WIDTH for place in range(WIDTH)])
            x = _larger(builder, x, builder.shuffle_vector(x, x, turned))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return types.float32(_vector), made


def _operator(of: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def operation(typing: Any, x: Any, y: Any) -> Typed:
        def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return x(x, x), made

    @overload(of, inline="always")
    def implementation(x: Any, y: Any) -> Any:
        def apply(x: Any, y: Any) -> Any:
            return operation(x, y)

        return apply if isinstance(x, _Vector) and x == y else None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _pairs(builder: Any, a: Any, b: Any) -> Any:
    """For each half: sums of a's neighbours, then of b's."""
    even = ir.Constant(_INTS, [0, 2, 8, 10, 4, 6, 12, 14])
    odd = ir.Constant(_INTS, [1, 3, 9, 11, 5, 7, 13, 15])
    return builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))


@intrinsic
def sums(typing: Any, a: Any, b: Any, c: Any, d: Any, addend: Any, index: Any, out: Any, place: Any) -> Typed:
    """out[place : place + 4] <- the sums of four vectors, plus addend[index : index + 4]"""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, c, d, addend, index, out, place = arguments
        four = _pairs(builder, _pairs(builder, a, b), _pairs(builder, c, d))
        low, high = (
            builder.shuffle_vector(four, four, ir.Constant(ir.VectorType(ir.IntType(32), 4), half))
            for half in ([0, 1, 2, 3], [4, 5, 6, 7])
        )
        more = _read(builder, _pointer(context, builder, signature.args[4], (addend, index), _QUAD))
        total = builder.fadd(builder.fadd(low, high), more)
        builder.store(total, _pointer(context, builder, signature.args[6], (out, place), _QUAD), align=4)

    return types.void(_vector, _vector, _vector, _vector, addend, types.intp, out, types.intp), made


@intrinsic
def total(typing: Any, x: Any) -> Typed:
    """The sum of the eight numbers, a float32."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        four = _pairs(builder, *arguments * 2)
        four = _pairs(builder, four, four)
        low, high = (builder.extract_element(four, ir.Constant(ir.IntType(32), place)) for place in (0, 4))
        return builder.fadd(low, high)

    return types.float32(_vector), made


LEAST, LN_2 = -87.0, 355 / 512  # LN_2 has few digits, so that an integer times LN_2 is exact


@intrinsic
def exp(typing: Any, x: Any) -> Typed:
    """e^x = 2^n e^f for x <= 0, with an integer n and |f| <= ln(2) / 2, by eight terms of the series.

    Error: at most two units of the last place. Below x = -87 the result is e^-87.
    """

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        x = builder.select(builder.fcmp_ordered("<", x, _constant(LEAST)), _constant(LEAST), x)
        n = builder.fptosi(builder.fsub(builder.fmul(x, _constant(1 / math.log(2))), _constant(0.5)), _INTS)
        whole = builder.sitofp(n, _FLOATS)
        f = _fma(builder, whole, _constant(-LN_2), x)
        f = _fma(builder, whole, _constant(LN_2 - math.log(2)), f)
        series = _constant(1 / math.factorial(7))
        for k in range(6, -1, -1):
            series = _fma(builder, series, f, _constant(1 / math.factorial(k)))
        power = builder.shl(builder.add(n, _constant(127, _INTS)), _constant(23, _INTS))
        return builder.fmul(series, builder.bitcast(power, _FLOATS))

    return _vector(_vector), made
