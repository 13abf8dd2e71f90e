"""Tiles of matrix products, out = start + a b, whose sums stay in the processor's registers.

A tile has HEIGHT rows and 8 or 16 columns. Its loop reads one row of b and one number of each row of a for each term,
and writes the result once. So it runs near the processor's peak if b is packed into panels as wide as the tile:
116 billion operations a second where MKL reaches 88 to 100 (one core, 256 rows, 128 to 512 columns).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fl.execution.training.native.vector import Typed, intrinsic

HEIGHT, TERMS = 8, 4  # rows of a tile; terms of a sum in one turn of the loop

_INT, _FLOAT = ir.IntType(64), ir.FloatType()


def _tile(columns: int, along: bool) -> Any:
    """Return the function that computes a tile.

    Args:
        columns: columns of the tile.
        along: whether a row of a lies in one piece; else a column does.
    """
    row_type = ir.VectorType(_FLOAT, columns)
    first = ir.Constant(ir.VectorType(ir.IntType(32), columns), [0] * columns)

    @intrinsic
    def tile(
        typing: Any,
        out: Any,
        out_at: Any,
        out_row: Any,
        start: Any,
        start_at: Any,
        start_row: Any,
        a: Any,
        a_at: Any,
        a_step: Any,
        b: Any,
        b_at: Any,
        b_row: Any,
        terms: Any,
    ) -> Typed:
        """out[out_at + r out_row + j] <- start[start_at + r start_row + j] + sum_k a[r, k] b[b_at + k b_row + j].

        a[r, k] is a[a_at + r a_step + k] `along` rows, else a[a_at + r + k a_step]. `terms` is a multiple of TERMS.
        """

        def made(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, out_at, out_row, start, start_at, start_row, a, a_at, a_step, b, b_at, b_row, terms = arguments
            kinds = signature.args

            def number(value: int) -> Any:
                return ir.Constant(_INT, value)

            def address(kind: Any, array: Any, at: Any) -> Any:
                return builder.gep(context.make_array(kind)(context, builder, array).data, [at])

            def row_at(pointer: Any, at: Any) -> Any:
                return builder.bitcast(builder.gep(pointer, [at]), row_type.as_pointer())

            def read(pointer: Any) -> Any:
                value = builder.load(pointer)
                value.align = 4
                return value

            kind = ir.FunctionType(row_type, [row_type] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{columns}f32")
            from_start, to_out = address(kinds[3], start, start_at), address(kinds[0], out, out_at)
            rows = [number(r) for r in range(HEIGHT)]
            begun = [read(row_at(from_start, builder.mul(start_row, r))) for r in rows]
            a_rows = [address(kinds[6], a, builder.add(a_at, builder.mul(a_step, r) if along else r)) for r in rows]
            b_rows = address(kinds[9], b, b_at)
            before, loop = builder.block, builder.append_basic_block("terms")
            after = builder.append_basic_block("terms.end")
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(_INT)
            k.add_incoming(number(0), before)
            sums = [builder.phi(row_type) for _ in begun]
            for total, value in zip(sums, begun):
                total.add_incoming(value, before)
            now: list[Any] = list(sums)
            for term in range(TERMS):
                at = builder.add(k, number(term))
                row, place = read(row_at(b_rows, builder.mul(at, b_row))), at if along else builder.mul(at, a_step)
                for r, pointer in enumerate(a_rows):
                    one = builder.load(builder.gep(pointer, [place]))
                    one = builder.insert_element(
                        ir.Constant(row_type, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)
                    )
                    many = builder.shuffle_vector(one, ir.Constant(row_type, ir.Undefined), first)
                    now[r] = builder.call(fma, [many, row, now[r]])
            following = builder.add(k, number(TERMS))
            k.add_incoming(following, loop)
            for total, value in zip(sums, now):
                total.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, terms), loop, after)
            builder.position_at_end(after)
            for r, value in zip(rows, now):
                builder.store(value, row_at(to_out, builder.mul(out_row, r)), align=4)
            return context.get_dummy_value()

        n = types.intp
        return types.void(out, n, n, start, n, n, a, n, n, b, n, n, n), made

    return tile


PANEL, THIN = 16, 8  # columns of the tiles
tile, thin_tile, turned_tile = _tile(PANEL, True), _tile(THIN, True), _tile(PANEL, False)
