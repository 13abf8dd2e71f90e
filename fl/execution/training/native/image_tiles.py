"""Tiles of sums over images, for convolutions: a tile has up to HEIGHT rows of sixteen columns.

All sums of a tile stay in registers until they are done. Each of them is one chain of fused multiplications and
additions in the order of its terms, so the height of a tile changes no bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fl.execution.training.native.vector import AVX512, Typed, intrinsic

COLUMNS = 16
HEIGHT = 14 if AVX512 else 6  # tiles that fill the registers of sixteen, or of eight numbers

_INT, _SMALL, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_ROW, _LANES = ir.VectorType(_FLOAT, COLUMNS), ir.VectorType(_SMALL, COLUMNS)
_MASK = ir.VectorType(ir.IntType(1), COLUMNS)


class _Factors(NamedTuple):
    """Where the factors of a tile are.

    a: where each row's numbers begin in each piece of the sum.
    step: how far apart a row's numbers are.
    b, b_row: where the rows of b begin, and how far apart they are.
    a_piece, b_piece: how far apart the pieces of a and b are.
    terms, pieces: number of terms of a piece; number of pieces.
    """

    a: list[Any]
    step: Any
    b: Any
    b_row: Any
    a_piece: Any
    b_piece: Any
    terms: Any
    pieces: Any


def _number(value: int) -> Any:
    return ir.Constant(_INT, value)


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _read(builder: Any, pointer: Any) -> Any:
    value = builder.load(builder.bitcast(pointer, _ROW.as_pointer()))
    value.align = 4
    return value


def _splat(builder: Any, number: Any) -> Any:
    one = builder.insert_element(ir.Constant(_ROW, ir.Undefined), number, ir.Constant(_SMALL, 0))
    return builder.shuffle_vector(one, ir.Constant(_ROW, ir.Undefined), ir.Constant(_LANES, [0] * COLUMNS))


def _fma(builder: Any) -> Any:
    kind = ir.FunctionType(_ROW, [_ROW] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{COLUMNS}f32")


def _sums(builder: Any, begun: list[Any], at: _Factors) -> list[Any]:
    """sum_r <- begun_r + the sum over pieces p and terms k of a_r[p a_piece + k step] b[p b_piece + k b_row]."""
    fma = _fma(builder)
    before, pieces, terms, ended, after = (
        builder.block,
        *(builder.append_basic_block(name) for name in ("pieces", "terms", "piece.end", "end")),
    )
    builder.branch(pieces)

    builder.position_at_end(pieces)
    p, outer = builder.phi(_INT), [builder.phi(_ROW) for _ in begun]
    a_at, b_at = builder.mul(p, at.a_piece), builder.mul(p, at.b_piece)
    a_rows, b_rows = [builder.gep(a, [a_at]) for a in at.a], builder.gep(at.b, [b_at])
    builder.branch(terms)

    builder.position_at_end(terms)
    k, sums = builder.phi(_INT), [builder.phi(_ROW) for _ in begun]
    row, place, now = _read(builder, builder.gep(b_rows, [builder.mul(k, at.b_row)])), builder.mul(k, at.step), []
    for a, total in zip(a_rows, sums):
        many = _splat(builder, builder.load(builder.gep(a, [place])))
        now.append(builder.call(fma, [many, row, total]))
    following = builder.add(k, _number(1))
    builder.cbranch(builder.icmp_signed("<", following, at.terms), terms, ended)

    builder.position_at_end(ended)
    next_piece = builder.add(p, _number(1))
    builder.cbranch(builder.icmp_signed("<", next_piece, at.pieces), pieces, after)

    p.add_incoming(_number(0), before)
    p.add_incoming(next_piece, ended)
    k.add_incoming(_number(0), pieces)
    k.add_incoming(following, terms)
    for first, piece, total, value in zip(begun, outer, sums, now):
        piece.add_incoming(first, before)
        piece.add_incoming(value, ended)
        total.add_incoming(piece, pieces)
        total.add_incoming(value, terms)
    builder.position_at_end(after)
    return now


def _store(builder: Any, value: Any, pointer: Any, lanes: Any) -> None:
    """Write the first `lanes` columns."""
    pointer = builder.bitcast(pointer, _ROW.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [_ROW, _ROW.as_pointer(), _SMALL, _MASK])
    write = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{COLUMNS}f32.p0v{COLUMNS}f32")
    builder.call(write, [value, pointer, ir.Constant(_SMALL, 4), lanes])


def _first(builder: Any, lanes: Any) -> Any:
    """A mask of the first `lanes` columns."""
    one = builder.insert_element(
        ir.Constant(_LANES, ir.Undefined), builder.trunc(lanes, _SMALL), ir.Constant(_SMALL, 0)
    )
    many = builder.shuffle_vector(one, ir.Constant(_LANES, ir.Undefined), ir.Constant(_LANES, [0] * COLUMNS))
    return builder.icmp_signed("<", ir.Constant(_LANES, list(range(COLUMNS))), many)


def _by_height(builder: Any, height: Any, made: Callable[[int], None]) -> None:
    """Write the code of each height, and jump to that of `height`."""
    before, after = builder.block, builder.append_basic_block("done")
    cases = []
    for rows in range(1, HEIGHT + 1):
        cases.append(builder.append_basic_block(f"height.{rows}"))
        builder.position_at_end(cases[-1])
        made(rows)
        builder.branch(after)
    builder.position_at_end(before)
    switch = builder.switch(height, after)
    for rows, case in enumerate(cases, 1):
        switch.add_case(_number(rows), case)
    builder.position_at_end(after)


@intrinsic
def get(typing: Any, array: Any, index: Any) -> Typed:
    """array[index], for an index that is not negative: numba's own access looks at its sign."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *arguments))

    return array.dtype(array, types.intp), made


@intrinsic
def put(typing: Any, array: Any, index: Any, value: Any) -> Typed:
    """array[index] <- value, for an index that is not negative."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), made


@intrinsic
def pixel_tile(
    typing: Any,
    height: Any,
    out: Any,
    out_at: Any,
    start: Any,
    start_at: Any,
    least: Any,
    lanes: Any,
    a: Any,
    a_at: Any,
    places: Any,
    to_place: Any,
    of_place: Any,
    a_piece: Any,
    b: Any,
    b_at: Any,
    b_piece: Any,
    terms: Any,
    pieces: Any,
) -> Typed:
    """Pixels of a convolution: out[o_r + j] <- max(least, start[j] + sum_p sum_k a[i_r + p a_piece + k] b[p, k, j]).

    NaN stays NaN. o_r = out_at + places[to_place + r] and i_r = a_at + places[of_place + r] for the rows r < height;
    j < lanes; b[p, k, j] = b[b_at + p b_piece + k COLUMNS + j].
    """

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        height, out, out_at, start, start_at, least, lanes = arguments[:7]
        a, a_at, places, to_place, of_place, a_piece, b, b_at, b_piece, terms, pieces = arguments[7:]
        kinds = signature.args
        address = lambda index, array, at: _address(context, builder, kinds[index], array, at)  # noqa: E731
        to, of = address(1, out, out_at), address(7, a, a_at)
        outs, begins_at = address(9, places, to_place), address(9, places, of_place)
        begun, floor = _read(builder, address(3, start, start_at)), _splat(builder, least)
        mask, panel = _first(builder, lanes), address(13, b, b_at)

        def tile(rows: int) -> None:
            begins = [builder.gep(of, [builder.load(builder.gep(begins_at, [_number(r)]))]) for r in range(rows)]
            factors = _Factors(begins, _number(1), panel, _number(COLUMNS), a_piece, b_piece, terms, pieces)
            for r, value in enumerate(_sums(builder, [begun] * rows, factors)):
                value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)
                _store(builder, value, builder.gep(to, [builder.load(builder.gep(outs, [_number(r)]))]), mask)

        _by_height(builder, height, tile)
        return context.get_dummy_value()

    n = types.intp
    return types.void(n, out, n, start, n, types.float32, n, a, n, places, n, n, n, b, n, n, n, n), made


@intrinsic
def weight_tile(
    typing: Any,
    height: Any,
    out: Any,
    out_at: Any,
    out_row: Any,
    a: Any,
    a_at: Any,
    a_step: Any,
    a_piece: Any,
    b: Any,
    b_at: Any,
    b_row: Any,
    b_piece: Any,
    terms: Any,
    pieces: Any,
) -> Typed:
    """Rows of a gradient: out[r out_row + j] += sum_p sum_k a[r + p a_piece + k a_step] b[p b_piece + k b_row + j].

    For the rows r < height and all COLUMNS j; the arrays begin at out_at, a_at and b_at.
    """

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        height, out, out_at, out_row, a, a_at, a_step, a_piece, b, b_at, b_row, b_piece, terms, pieces = arguments
        kinds = signature.args
        to = _address(context, builder, kinds[1], out, out_at)
        of, lines = _address(context, builder, kinds[4], a, a_at), _address(context, builder, kinds[8], b, b_at)

        def tile(rows: int) -> None:
            outs = [builder.gep(to, [builder.mul(out_row, _number(r))]) for r in range(rows)]
            begins = [builder.gep(of, [_number(r)]) for r in range(rows)]
            factors = _Factors(begins, a_step, lines, b_row, a_piece, b_piece, terms, pieces)
            for pointer, value in zip(outs, _sums(builder, [_read(builder, out) for out in outs], factors)):
                builder.store(value, builder.bitcast(pointer, _ROW.as_pointer()), align=4)

        _by_height(builder, height, tile)
        return context.get_dummy_value()

    n = types.intp
    return types.void(n, out, n, n, a, n, n, n, b, n, n, n, n, n), made


@intrinsic
def pool_pixel(
    typing: Any, z: Any, z_at: Any, down: Any, right: Any, lanes: Any, out: Any, out_at: Any, index: Any, index_at: Any
) -> Typed:
    """The largest of 2 x 2 pixels and its number, for `lanes` channels; the first of equal ones, the last NaN.

    The pixels begin at z_at, z_at + right, z_at + down and z_at + down + right. Their numbers are int32.
    """

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        z, z_at, down, right, lanes, out, out_at, index, index_at = arguments
        kinds, mask = signature.args, _first(builder, lanes)
        first, below = _address(context, builder, kinds[0], z, z_at), builder.add(down, right)
        best, number = _read(builder, first), ir.Constant(_LANES, [0] * COLUMNS)
        for k, shift in enumerate((right, down, below), 1):
            value = _read(builder, builder.gep(first, [shift]))
            taken = builder.or_(builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("uno", value, value))
            best = builder.select(taken, value, best)
            number = builder.select(taken, ir.Constant(_LANES, [k] * COLUMNS), number)
        _store(builder, best, _address(context, builder, kinds[5], out, out_at), mask)
        place = builder.bitcast(_address(context, builder, kinds[7], index, index_at), _FLOAT.as_pointer())
        _store(builder, builder.bitcast(number, _ROW), place, mask)
        return context.get_dummy_value()

    n = types.intp
    return types.void(z, n, n, n, n, out, n, index, n), made


def _slope(context: Any, builder: Any, kinds: Any, arguments: Any) -> tuple[Any, Any]:
    """(d, or 0 where h <= least; a mask of the lanes), for arguments (d, d_at, h, h_at, least, lanes, ...)."""
    value, above = (_read(builder, _address(context, builder, kinds[i], *arguments[i : i + 2])) for i in (0, 2))
    closed = builder.fcmp_ordered("<=", above, _splat(builder, arguments[4]))
    return builder.select(closed, ir.Constant(_ROW, [0.0] * COLUMNS), value), _first(builder, arguments[5])


@intrinsic
def slope_pixel(
    typing: Any, d: Any, d_at: Any, h: Any, h_at: Any, least: Any, lanes: Any, out: Any, out_at: Any
) -> Typed:
    """out <- d, or 0 where h <= least, for `lanes` numbers."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, mask = _slope(context, builder, signature.args, arguments)
        _store(builder, value, _address(context, builder, signature.args[6], *arguments[6:]), mask)
        return context.get_dummy_value()

    n = types.intp
    return types.void(d, n, h, n, types.float32, n, out, n), made


@intrinsic
def unpool_pixel(
    typing: Any,
    d: Any,
    d_at: Any,
    h: Any,
    h_at: Any,
    least: Any,
    lanes: Any,
    index: Any,
    index_at: Any,
    out: Any,
    out_at: Any,
    down: Any,
    right: Any,
) -> Typed:
    """Gradients in 2 x 2 pixels: d where `index` has their number, else 0; 0 where h <= least; for `lanes` channels."""

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index, index_at, out, out_at, down, right = arguments[6:]
        kinds, (value, mask) = signature.args, _slope(context, builder, signature.args, arguments)
        place = builder.bitcast(_address(context, builder, kinds[6], index, index_at), _FLOAT.as_pointer())
        number, first = (
            builder.bitcast(_read(builder, place), _LANES),
            _address(context, builder, kinds[8], out, out_at),
        )
        for k, shift in enumerate((_number(0), right, down, builder.add(down, right))):
            here = builder.icmp_signed("==", number, ir.Constant(_LANES, [k] * COLUMNS))
            _store(
                builder,
                builder.select(here, value, ir.Constant(_ROW, [0.0] * COLUMNS)),
                builder.gep(first, [shift]),
                mask,
            )
        return context.get_dummy_value()

    n = types.intp
    return types.void(d, n, h, n, types.float32, n, index, n, out, n, n, n), made


@intrinsic
def line_tile(
    typing: Any,
    height: Any,
    out: Any,
    out_at: Any,
    lines: Any,
    lines_at: Any,
    places: Any,
    factors: Any,
    first: Any,
    terms: Any,
) -> Typed:
    """Add multiples of lines: out[out_at + j] += sum_k factors[first + k] lines[lines_at + places[first + k] + j].

    For k < terms and j < height * COLUMNS.
    """

    def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        height, out, out_at, lines, lines_at, places, factors, first, terms = arguments
        kinds = signature.args
        to, of = (
            _address(context, builder, kinds[1], out, out_at),
            _address(context, builder, kinds[3], lines, lines_at),
        )
        numbers, begins = (_address(context, builder, kinds[i], arguments[i], first) for i in (6, 5))
        fma = _fma(builder)

        def tile(rows: int) -> None:
            outs = [builder.gep(to, [_number(r * COLUMNS)]) for r in range(rows)]
            begun = [_read(builder, pointer) for pointer in outs]
            before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("terms", "terms.end"))
            builder.branch(loop)
            builder.position_at_end(loop)
            k, sums = builder.phi(_INT), [builder.phi(_ROW) for _ in begun]
            line = builder.gep(of, [builder.load(builder.gep(begins, [k]))])
            many, now = _splat(builder, builder.load(builder.gep(numbers, [k]))), []
            for r, total in enumerate(sums):
                now.append(builder.call(fma, [many, _read(builder, builder.gep(line, [_number(r * COLUMNS)])), total]))
            following = builder.add(k, _number(1))
            builder.cbranch(builder.icmp_signed("<", following, terms), loop, after)
            k.add_incoming(_number(0), before)
            k.add_incoming(following, loop)
            for total, start, value in zip(sums, begun, now):
                total.add_incoming(start, before)
                total.add_incoming(value, loop)
            builder.position_at_end(after)
            for pointer, value in zip(outs, now):
                builder.store(value, builder.bitcast(pointer, _ROW.as_pointer()), align=4)

        _by_height(builder, height, tile)
        return context.get_dummy_value()

    n = types.intp
    return types.void(n, out, n, lines, n, places, factors, n, n), made
