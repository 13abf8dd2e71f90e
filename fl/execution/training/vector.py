"""Vectors of eight float32 in numba's code. What is added to what is as written, whatever registers the processor has.

    v = load(array, i)          array[i : i + 8], of one dimension          store(array, i, v)
    splat(number)               eight times the number                      x + y    x - y    x * y    each rounded
    fma(x, y, z)                x y + z, rounded once                       exp(x)          x <= 0
    sums(a, b, c, d, e, i, f, k)    f[k : k + 4] = [sum(a), sum(b), sum(c), sum(d)] + e[i : i + 4]
    prefetch(array, i)              array[i] is wanted soon

What is compiled with them is kept in numba's cache, which does not see changes of this file.
"""

from __future__ import annotations

import math
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic, models, overload, register_model

WIDTH = 8  # what most processors of today have; those with wider registers compute the same
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(ir.IntType(32), WIDTH)
_QUAD = ir.VectorType(ir.FloatType(), WIDTH // 2)


class _Vector(types.Type):
    def __init__(self):
        super().__init__(name="float32x8")


_vector = _Vector()


@register_model(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _FLOATS)


def _pointer(context, builder, array_type, array, index, kind):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _read(builder, pointer):
    value = builder.load(pointer)
    value.align = 4
    return value


@intrinsic
def load(typing, array, index):
    def made(context, builder, signature, arguments):
        return _read(builder, _pointer(context, builder, signature.args[0], *arguments, _FLOATS))

    return _vector(array, types.intp), made


@intrinsic
def store(typing, array, index, vector):
    def made(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2], _FLOATS)
        builder.store(arguments[2], pointer, align=4)

    return types.void(array, types.intp, _vector), made


@intrinsic
def prefetch(typing, array, index):
    def made(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments, ir.IntType(8))
        flags = [ir.IntType(32)] * 3
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *flags])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [pointer, *(ir.Constant(flag, number) for flag, number in zip(flags, (0, 2, 1)))])

    return types.void(array, types.intp), made


def _constant(value, kind=_FLOATS):
    return ir.Constant(kind, [value] * kind.count)


def _splat(builder, number):
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), _constant(0, _INTS))


def _fma(builder, x, y, z):
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v8f32"), [x, y, z])


@intrinsic
def splat(typing, number):
    return _vector(types.float32), lambda context, builder, signature, arguments: _splat(builder, *arguments)


@intrinsic
def fma(typing, x, y, z):
    return _vector(_vector, _vector, _vector), lambda context, builder, signature, arguments: _fma(builder, *arguments)


def _operator(of, instruction):
    @intrinsic
    def operation(typing, x, y):
        def made(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments)

        return _vector(_vector, _vector), made

    @overload(of, inline="always")
    def implementation(x, y):
        return (lambda x, y: operation(x, y)) if isinstance(x, _Vector) and isinstance(y, _Vector) else None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")


def _pairs(builder, a, b):
    """Of each half: sums of a's neighbours, then of b's."""
    even = ir.Constant(_INTS, [0, 2, 8, 10, 4, 6, 12, 14])
    odd = ir.Constant(_INTS, [1, 3, 9, 11, 5, 7, 13, 15])
    return builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))


@intrinsic
def sums(typing, a, b, c, d, addend, index, out, place):
    def made(context, builder, signature, arguments):
        a, b, c, d, addend, index, out, place = arguments
        four = _pairs(builder, _pairs(builder, a, b), _pairs(builder, c, d))
        low, high = (
            builder.shuffle_vector(four, four, ir.Constant(ir.VectorType(ir.IntType(32), 4), half))
            for half in ([0, 1, 2, 3], [4, 5, 6, 7])
        )
        more = _read(builder, _pointer(context, builder, signature.args[4], addend, index, _QUAD))
        total = builder.fadd(builder.fadd(low, high), more)
        builder.store(total, _pointer(context, builder, signature.args[6], out, place, _QUAD), align=4)

    return types.void(_vector, _vector, _vector, _vector, addend, types.intp, out, types.intp), made


LEAST, LN_2 = -87.0, 355 / 512  # of few digits, so that a whole number times it is exact


@intrinsic
def exp(typing, x):
    """2^n e^f of x <= 0, n whole and |f| <= ln(2) / 2, by eight terms of the series: within two units of the last place. Where that is
    less than e^-87, e^-87."""

    def made(context, builder, signature, arguments):
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
