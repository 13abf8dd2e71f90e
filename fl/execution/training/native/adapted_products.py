"""Products of linear layers whose weights are frozen and have adapters.

    [x | u] [W | s B]^T,  u = x A^T            outputs of a frozen layer with the factors A (r, in) and B (out, r)
    [g | v] [W ; A],      v = s g B            gradient of its inputs
    dA += v^T x,          dB^T += u^T g        gradients of the factors

The weights lie in panels of PANEL columns with r more rows, into which each client's factors are written.

A row of `linear` (layers, 8) describes a frozen layer:

    inputs, outputs, rank (0: no adapter), offsets of A and B in a row of `Params`, of its panels forward and backward,
    of its factors

`factors` has A^T (in, r) and s B (out, r) of each layer, `changes` at the same offsets dA (r, in) and dB^T (r, out). r
is the same for all layers: the largest rank, rounded up to a multiple of THIN; smaller factors are filled with zeros.
"""

from __future__ import annotations

import numpy as np

from fl.execution.training.native.jit import part
from fl.execution.training.native.tiles import HEIGHT, PANEL, THIN, thin_tile, tile, turned_tile


@part
def product(
    x: np.ndarray,
    x_row: int,
    terms: int,
    panels: np.ndarray,
    columns: int,
    start: np.ndarray,
    start_row: int,
    out: np.ndarray,
    out_row: int,
    rows: int,
) -> None:
    """out <- start + x panels, for rows of x with `terms` numbers."""
    for j in range(0, columns, PANEL):
        for r in range(0, rows, HEIGHT):
            at, first, from_x, panel = r * out_row + j, r * start_row + j, r * x_row, terms * j
            tile(out, at, out_row, start, first, start_row, x, from_x, x_row, panels, panel, PANEL, terms)


@part
def inner_product(
    x: np.ndarray, x_row: int, terms: int, factor: np.ndarray, rank: int, nothing: np.ndarray, rows: int
) -> None:
    """x[:, terms:] <- x[:, :terms] factor (terms, rank)."""
    for j in range(0, rank, THIN):
        for r in range(0, rows, HEIGHT):
            at = r * x_row
            thin_tile(x, at + terms + j, x_row, nothing, 0, 0, x, at, x_row, factor, j, rank, terms)


@part
def outer_product(
    u: np.ndarray, u_at: int, u_row: int, rank: int, x: np.ndarray, x_row: int, columns: int, rows: int, out: np.ndarray
) -> None:
    """out (rank, columns) += u[:, u_at : u_at + rank]^T x[:, :columns]."""
    for j in range(0, columns, PANEL):
        for r in range(0, rank, HEIGHT):
            at = r * columns + j
            turned_tile(out, at, columns, out, at, columns, u, u_at + r, u_row, x, j, x_row, rows)


@part
def linear_backward(
    g: np.ndarray,
    g_row: int,
    x: np.ndarray,
    x_row: int,
    row: np.ndarray,
    panels: np.ndarray,
    factors: np.ndarray,
    changes: np.ndarray,
    rank: int,
    nothing: np.ndarray,
    rows: int,
    out: np.ndarray,
    out_row: int,
) -> None:
    """Add to the gradients of a layer's factors; out <- the gradient of its inputs, unless `out` is empty.

    g has the gradient of the outputs in its first columns; the next `rank` are written.
    """
    n_in, n_out, _, _, _, _, backward, at = row
    inner_product(g, g_row, n_out, factors[at + n_in * rank :], rank, nothing, rows)
    outer_product(g, n_out, g_row, rank, x, x_row, n_in, rows, changes[at:])
    outer_product(x, n_in, x_row, rank, g, g_row, n_out, rows, changes[at + n_in * rank :])
    if len(out):
        product(g, g_row, n_out + rank, panels[backward:], n_in, nothing, 0, out, out_row, rows)


@part
def write_factors(
    params: np.ndarray,
    linear: np.ndarray,
    scales: np.ndarray,
    rank: int,
    forward: np.ndarray,
    backward: np.ndarray,
    factors: np.ndarray,
) -> None:
    """Write a client's factors into the panels and into `factors`, where pads are zeros."""
    for k in range(len(linear)):
        n_in, n_out, own, a, b, ahead, back, at = linear[k]
        turned, scaled = factors[at : at + n_in * rank], factors[at + n_in * rank :]
        for r in range(own):
            for i in range(n_in):
                panel = back + i // PANEL * PANEL * (n_out + rank) + i % PANEL
                turned[i * rank + r] = backward[panel + (n_out + r) * PANEL] = params[a + r * n_in + i]
            for o in range(n_out):
                panel = ahead + o // PANEL * PANEL * (n_in + rank) + o % PANEL
                scaled[o * rank + r] = forward[panel + (n_in + r) * PANEL] = params[b + o * own + r] * scales[k]


@part
def read_changes(changes: np.ndarray, linear: np.ndarray, scales: np.ndarray, rank: int, out: np.ndarray) -> None:
    """out <- gradients of the factors, as a row of `Params`."""
    for k in range(len(linear)):
        n_in, n_out, own, a, b, _, _, at = linear[k]
        for i in range(own * n_in):
            out[a + i] = changes[at + i]
        at += n_in * rank
        for o in range(n_out):
            for r in range(own):
                out[b + o * own + r] = changes[at + r * n_out + o] * scales[k]
