"""Forward and backward pass of convolutions in a row, each with an optional ReLU and an optional max-pool over 2 x 2.

    z[o, y, x] = b[o] + sum_{i, j, c} w[o, c, i, j] h[c, s y + i - p, s x + j - p]          h' = pool(max(0, z))
    dL/dw[o, c, i, j] = sum_{y, x} g[o, y, x] h[c, s y + i - p, s x + j - p]                g = dL/dz

One sample passes through all layers before the next one begins, so that its images stay in the processor's near caches.
Images lie pixel by pixel (height, width, channels), with the zeros of the padding around them. So the numbers that a
row of the kernel meets lie in one piece, and the sums of a pixel run over few long pieces (image_tiles.py).

The gradient in a layer's inputs is a convolution of g with the turned kernel. For it, g has zeros around it, and
between its pixels if the stride is more than 1. Most products with these zeros are left out.

Behind a pool, at most a quarter of g is not zero. If a layer with a pool has enough inputs to fill a register (sparse),
both gradients are sums over these numbers only: each one times the inputs that the kernel meets there, or times its
channel's weights. Products of zeros with finite numbers would change no sum. Those with inf and NaN would be NaN: in
these layers, an input or a weight that is not finite spreads less than in torch.

    tape      of each sample: the inputs of all layers, padded; the outputs; the numbers of the pools' maxima
    panels    (outputs / COLUMNS, kernel height, kernel width, inputs, COLUMNS), rounded up, with zeros in the pads
    turned    the same for the backward pass: (inputs / COLUMNS, kernel height, kernel width, outputs, COLUMNS); of a
              sparse layer (outputs, kernel height, kernel width * inputs, rounded up)
    walk      the pixels of a convolution in groups that meet the same rows and columns of the kernel. Each group has
              COUNT (n), SHIFT of the panels, TERMS and PIECES, then where n pixels are written, then where the inputs
              of n pixels begin. A group of no pixels ends the walk
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numba import types
from numba.np import numpy_support

from fl.execution.training.native import cache
from fl.execution.training.native.image_tiles import (
    COLUMNS,
    HEIGHT,
    get,
    line_tile,
    pixel_tile,
    pool_pixel,
    put,
    slope_pixel,
    unpool_pixel,
    weight_tile,
)
from fl.execution.training.native.jit import inlined, owner, part, signature
from fl.execution.training.native.vector import one_at

# A convolution with what follows it. The last row of `layers` stands for the outputs of all, and ends with `x_at`
FIELDS = (
    *("inputs", "height", "width"),  # its images
    *("pad_h", "pad_w"),  # rows and columns of zeros on each side
    "x_at",  # where its padded images begin in a sample's part of the tape
    *("outputs", "kernel_h", "kernel_w", "stride_h", "stride_w"),  # the convolution
    *("out_h", "out_w"),  # size of its outputs, before the pool
    *("relu", "pool"),  # whether they follow
    "sparse",  # whether the gradients are sums over the numbers that are not zero
    "index_at",  # where the numbers of the maxima begin in a sample's part of the tape
    *("walk", "walk_back"),  # where the walks over the pixels of its outputs and inputs begin
    *("panels", "turned"),  # where its panels begin
    *("g_memory", "g_line"),  # where the zeros around g begin; elements of a row with these zeros
    *("g_at", "g_row", "g_step"),  # where pixel (0, 0) of g begins; how far apart rows and pixels are
    *("sums", "gradient"),  # where the sums of its gradient begin; where the gradient of weights, then bias begins
)
LAYER = np.dtype([(field, np.int64) for field in FIELDS])
NEAR = 11 << 10  # numbers of a layer's inputs that stay in a near cache
GROUP = COUNT, SHIFT, TERMS, PIECES = 0, 1, 2, 3  # numbers at the beginning of a group

# least outputs of a layer with a ReLU, and without: no number is less than NaN
_0, _NONE = np.float32(0), np.float32(np.nan)

Vector = Annotated[np.ndarray, types.float32[::1]]
Integers = Annotated[np.ndarray, types.int32[::1]]
Places = Annotated[np.ndarray, types.int64[::1]]
Layers = Annotated[np.ndarray, types.Array(numpy_support.from_dtype(LAYER), 1, "C")]
Number = Annotated[int, types.int64]


@inlined
def rounded_up(channels: int) -> int:
    """Channels of whole panels."""
    return -(-channels // COLUMNS) * COLUMNS


@inlined
def _line(layer: Any) -> int:
    """Elements of a row of a layer's padded inputs."""
    return (layer.width + 2 * layer.pad_w) * layer.inputs


@inlined
def _row(layer: Any) -> int:
    """Elements that a row of the kernel meets, rounded up to whole registers."""
    return rounded_up(layer.kernel_w * layer.inputs)


@inlined
def _inside(layer: Any) -> int:
    """Where the first pixel that is not padding begins in a layer's inputs."""
    return layer.pad_h * _line(layer) + layer.pad_w * layer.inputs


@part
def _convolve(
    out: np.ndarray,
    out_at: int,
    channels: int,
    start: np.ndarray,
    least: np.float32,
    x: np.ndarray,
    x_at: int,
    x_line: int,
    panels: np.ndarray,
    panels_at: int,
    panel_line: int,
    panel: int,
    places: np.ndarray,
    walk: int,
) -> None:
    """out <- max(least, start + the products of x with the panels), for all pixels of the walk that begins at `walk`.

    `out` and `x` are images that begin at `out_at` and `x_at`; a row of x has `x_line` elements. `start` has one number
    for each of the channels of `out`, and numbers up to a whole panel. Panels have `panel` elements, of which
    `panel_line` belong to a row of the kernel.
    """
    for j in range(0, channels, COLUMNS):
        lanes, at = min(channels - j, COLUMNS), walk
        while places[at + COUNT] > 0:
            count, terms, pieces = places[at + COUNT], places[at + TERMS], places[at + PIECES]
            panel_at, done = panels_at + places[at + SHIFT], 0
            at += len(GROUP)
            for left in range(-(-count // HEIGHT), 0, -1):
                height = -(-(count - done) // left)  # tiles have about the same height
                pixel_tile(
                    height,
                    out,
                    out_at + j,
                    start,
                    j,
                    least,
                    lanes,
                    x,
                    x_at,
                    places,
                    at + done,
                    at + count + done,
                    x_line,
                    panels,
                    panel_at,
                    panel_line,
                    terms,
                    pieces,
                )
                done += height
            at += 2 * count
        panels_at += panel


@inlined
def _pack_panels(
    address: int,
    channels: int,
    others: int,
    taps: int,
    first: int,
    step: int,
    of_outputs: bool,
    panels: np.ndarray,
    at: int,
) -> None:
    """Write weights (outputs, inputs, taps), which begin at an address of memory, as panels of COLUMNS channels.

    `channels` are outputs or inputs (`of_outputs`), `others` the other ones. Taps go from `first` on by `step`.
    """
    apart, between = (others * taps, taps) if of_outputs else (taps, channels * taps)
    for j in range(0, channels, COLUMNS):
        lanes = min(channels - j, COLUMNS)
        for k in range(taps):
            for other in range(others):
                of = j * apart + other * between + first + k * step
                for c in range(lanes):
                    panels[at + c] = one_at(address, of + c * apart)
                for c in range(lanes, COLUMNS):
                    panels[at + c] = _0
                at += COLUMNS


@part
def _pack(address: int, layer: Any, panels: np.ndarray) -> None:
    """Write the weights, which begin at an address of memory, as the forward pass reads them."""
    taps = layer.kernel_h * layer.kernel_w
    _pack_panels(address, layer.outputs, layer.inputs, taps, 0, 1, True, panels, layer.panels)


@part
def _pack_lines(address: int, layer: Any, turned: np.ndarray) -> None:
    """Write the weights of a sparse layer, which begin at an address of memory, for the gradient in the inputs."""
    row, at = _row(layer), layer.turned
    for o in range(layer.outputs):
        for i in range(layer.kernel_h):
            for j in range(layer.kernel_w):
                for c in range(layer.inputs):
                    of = ((o * layer.inputs + c) * layer.kernel_h + i) * layer.kernel_w + j
                    turned[at + j * layer.inputs + c] = one_at(address, of)
            for k in range(layer.kernel_w * layer.inputs, row):
                turned[at + k] = _0
            at += row


@part
def _pack_turned(address: int, layer: Any, turned: np.ndarray) -> None:
    """Write the weights, which begin at an address of memory, as the gradient in the inputs reads them."""
    taps = layer.kernel_h * layer.kernel_w
    _pack_panels(address, layer.inputs, layer.outputs, taps, taps - 1, -1, False, turned, layer.turned)


@inlined
def _transpose(source: np.ndarray, at: int, rows: int, columns: int, target: np.ndarray, to: int) -> None:
    """target (columns, rows) <- source (rows, columns)"""
    for r in range(rows):
        for c in range(columns):
            target[to + c * rows + r] = source[at + r * columns + c]


@part
def _to_pixels(images: np.ndarray, at: int, layer: Any, tape: np.ndarray, to: int) -> None:
    """Write an image that lies channel by channel to the tape, whose padding is zeros already."""
    for c in range(layer.inputs):
        for y in range(layer.height):
            place = to + _inside(layer) + y * _line(layer) + c
            for x in range(layer.width):
                tape[place + x * layer.inputs] = images[at + x]
            at += layer.width


@part
def _to_channels(d: np.ndarray, line: int, layer: Any, images: np.ndarray, at: int) -> None:
    """Write an image that lies pixel by pixel, in rows of `line` elements, channel by channel."""
    for c in range(layer.inputs):
        for y in range(layer.height):
            for x in range(layer.width):
                images[at + x] = d[y * line + x * layer.inputs + c]
            at += layer.width


@part
def _pool(z: np.ndarray, layer: Any, after: Any, tape: np.ndarray, index: np.ndarray, sample: int) -> None:
    """Write the pooled z to the inputs of the layer after, and the numbers of the maxima to the tape."""
    right, down = layer.outputs, layer.out_w * layer.outputs
    number = sample + layer.index_at
    for y in range(after.height):
        to = sample + after.x_at + _inside(after) + y * _line(after)
        for x in range(after.width):
            for j in range(0, layer.outputs, COLUMNS):
                at, lanes = 2 * y * down + 2 * x * right + j, min(layer.outputs - j, COLUMNS)
                pool_pixel(z, at, down, right, lanes, tape, to + j, index, number + j)
            to, number = to + layer.outputs, number + layer.outputs


@part
def _slopes(
    d: np.ndarray, d_line: int, layer: Any, after: Any, tape: np.ndarray, index: np.ndarray, sample: int, g: np.ndarray
) -> None:
    """g <- the gradient in z, from d, the gradient in the inputs of the layer after, with rows of `d_line` elements."""
    least, number = _0 if layer.relu else _NONE, sample + layer.index_at
    for y in range(after.height):
        at = y * d_line
        above = sample + after.x_at + _inside(after) + y * _line(after)
        for x in range(after.width):
            if layer.pool:
                to = layer.g_at + 2 * y * layer.g_row + 2 * x * layer.g_step
            else:
                to = layer.g_at + y * layer.g_row + x * layer.g_step
            for j in range(0, layer.outputs, COLUMNS):
                lanes = min(layer.outputs - j, COLUMNS)
                if layer.pool:
                    unpool_pixel(
                        d,
                        at + j,
                        tape,
                        above + j,
                        least,
                        lanes,
                        index,
                        number + j,
                        g,
                        to + j,
                        layer.g_row,
                        layer.g_step,
                    )
                else:
                    slope_pixel(d, at + j, tape, above + j, least, lanes, g, to + j)
            at, above, number = at + layer.outputs, above + layer.outputs, number + layer.outputs


@inlined
def _met(size: int, pad: int, stride: int, tap: int, out: int) -> tuple[int, int]:
    """The first output and the end of those for which a row or column of the kernel meets no padding."""
    first, last = max(0, -((tap - pad) // stride)), (size - 1 + pad - tap) // stride
    return first, max(first, min(out, last + 1))


@part
def _weight_sums(
    layer: Any, tape: np.ndarray, x_at: int, g: np.ndarray, constants: np.ndarray, sums: np.ndarray
) -> None:
    """Add a sample's gradient of the weights (kernel height, kernel width, inputs, outputs) and biases to `sums`."""
    across, line = rounded_up(layer.outputs), _line(layer)
    step, piece = layer.stride_w * layer.inputs, layer.stride_h * line
    rows, blocks = layer.inputs, layer.kernel_w
    if rows < HEIGHT // 2:  # one block of all columns of the kernel fills more registers
        rows, blocks = rows * blocks, 1
    for j in range(0, layer.outputs, COLUMNS):
        at = layer.sums + j
        for i in range(layer.kernel_h):
            y, y_end = _met(layer.height, layer.pad_h, layer.stride_h, i, layer.out_h)
            for block in range(blocks):
                x, x_end = 0, layer.out_w
                if blocks > 1:
                    x, x_end = _met(layer.width, layer.pad_w, layer.stride_w, block, layer.out_w)
                of = x_at + (y * layer.stride_h + i) * line + x * step + block * layer.inputs
                g_at, done = layer.g_at + y * layer.g_row + x * layer.g_step + j, 0
                for left in range(-(-rows // HEIGHT), 0, -1):
                    height = -(-(rows - done) // left)
                    if y < y_end and x < x_end:
                        weight_tile(
                            height,
                            sums,
                            at,
                            across,
                            tape,
                            of + done,
                            step,
                            piece,
                            g,
                            g_at,
                            layer.g_step,
                            layer.g_row,
                            x_end - x,
                            y_end - y,
                        )
                    done, at = done + height, at + height * across
        weight_tile(
            1,
            sums,
            at,
            across,
            constants,
            len(constants) - 1,
            0,
            0,
            g,
            layer.g_at + j,
            layer.g_step,
            layer.g_row,
            layer.out_w,
            layer.out_h,
        )


@inlined
def _add_lines(
    out: np.ndarray,
    out_at: int,
    elements: int,
    lines: np.ndarray,
    lines_at: int,
    places: np.ndarray,
    factors: np.ndarray,
    first: int,
    terms: int,
) -> None:
    """`line_tile` for any number of elements, which is a multiple of COLUMNS."""
    for i in range(0, elements, HEIGHT * COLUMNS):
        height = min(elements - i, HEIGHT * COLUMNS) // COLUMNS
        line_tile(height, out, out_at + i, lines, lines_at + i, places, factors, first, terms)


@inlined
def _slope(h: np.ndarray, above: int, least: np.float32, d: np.ndarray, at: int) -> np.float32:
    """d[at], or 0 where h[above] <= least."""
    slope = get(d, at)
    return _0 if get(h, above) <= least else slope


@part
def _sparse_sums(
    d: np.ndarray,
    d_line: int,
    layer: Any,
    after: Any,
    tape: np.ndarray,
    index: np.ndarray,
    sample: int,
    places: np.ndarray,
    factors: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add a sample's gradient of the weights (outputs, kernel height, `_row`), then of the biases, to `sums`."""
    least, line, n_out, row = _0 if layer.relu else _NONE, _line(layer), layer.outputs, _row(layer)
    right, down = layer.stride_w * layer.inputs, layer.stride_h * line
    bias = layer.sums + n_out * layer.kernel_h * row
    rows = max(1, (NEAR // line - layer.kernel_h) // (2 * layer.stride_h))  # of pools whose inputs stay near
    for top in range(0, after.height, rows):
        for o in range(n_out):
            count, total = 0, sums[bias + o]
            for y in range(top, min(top + rows, after.height)):
                above, at = sample + after.x_at + _inside(after) + y * _line(after) + o, y * d_line + o
                number = sample + layer.index_at + y * after.width * n_out + o
                for x in range(after.width):
                    slope, k = _slope(tape, above, least, d, at), get(index, number)
                    put(places, count, (2 * y + (k >> 1)) * down + (2 * x + (k & 1)) * right)
                    put(factors, count, slope)
                    total += slope
                    count += slope != _0
                    above, at, number = above + n_out, at + n_out, number + n_out
            sums[bias + o] = total
            if count:
                for i in range(layer.kernel_h):
                    to = layer.sums + (o * layer.kernel_h + i) * row
                    _add_lines(sums, to, row, tape, sample + layer.x_at + i * line, places, factors, 0, count)


@part
def _sparse_below(
    d: np.ndarray,
    d_line: int,
    layer: Any,
    after: Any,
    tape: np.ndarray,
    index: np.ndarray,
    sample: int,
    places: np.ndarray,
    factors: np.ndarray,
    turned: np.ndarray,
    below: np.ndarray,
) -> None:
    """below <- the gradient in the padded inputs of a layer."""
    least, line, n_out, row = _0 if layer.relu else _NONE, _line(layer), layer.outputs, _row(layer)
    number, weight, counts = sample + layer.index_at, layer.kernel_h * row, places[4 * after.width * n_out :]
    for i in range((layer.height + 2 * layer.pad_h) * line):
        below[i] = _0
    for y in range(after.height):
        above, at = sample + after.x_at + _inside(after) + y * _line(after), y * d_line
        for x in range(after.width):
            here = counts[4 * x :]
            for k in range(4):
                here[k] = 0
            for o in range(n_out):
                slope, k = _slope(tape, above + o, least, d, at + o), get(index, number + o)
                count = get(here, k)
                place = (4 * x + k) * n_out + count
                put(places, place, o * weight)
                put(factors, place, slope)
                put(here, k, count + (slope != _0))
            above, at, number = above + n_out, at + n_out, number + n_out
        for i in range(layer.kernel_h):  # one row of the kernel at a time, so that its weights stay near
            lines_at = layer.turned + i * row
            for k in range(4 * after.width):
                if counts[k]:
                    to = (2 * y + ((k >> 1) & 1)) * layer.stride_h * line
                    to += i * line + (2 * (k >> 2) + (k & 1)) * layer.stride_w * layer.inputs
                    _add_lines(below, to, row, turned, lines_at, places, factors, k * n_out, counts[k])


@part
def _read_sums(layer: Any, sums: np.ndarray, out: np.ndarray) -> None:
    """Write the gradients of the weights and biases, as torch stores them."""
    across, taps = rounded_up(layer.outputs), layer.kernel_h * layer.kernel_w
    bias = layer.gradient + layer.outputs * layer.inputs * taps
    for j in range(0, layer.outputs, COLUMNS):
        lanes = min(layer.outputs - j, COLUMNS)
        for c in range(layer.inputs):
            for tap in range(taps):
                of = layer.sums + (tap * layer.inputs + c) * across + j
                to = layer.gradient + (j * layer.inputs + c) * taps + tap
                for o in range(lanes):
                    out[to + o * layer.inputs * taps] = sums[of + o]
        for o in range(j, j + lanes):
            out[bias + o] = sums[layer.sums + taps * layer.inputs * across + o]


@part
def _read_sparse_sums(layer: Any, sums: np.ndarray, out: np.ndarray) -> None:
    """`_read_sums` of a sparse layer."""
    row, to = _row(layer), layer.gradient
    for o in range(layer.outputs):
        for c in range(layer.inputs):
            for i in range(layer.kernel_h):
                of = layer.sums + (o * layer.kernel_h + i) * row + c
                for j in range(layer.kernel_w):
                    out[to] = sums[of + j * layer.inputs]
                    to += 1
    for o in range(layer.outputs):
        out[to + o] = sums[layer.sums + layer.outputs * layer.kernel_h * row + o]


@owner
def forward(
    images: Vector,
    weights: Places,
    layers: Layers,
    places: Places,
    samples: Number,
    step: Number,
    tape: Vector,
    index: Integers,
    panels: Vector,
    start: Vector,
    z: Vector,
    out: Vector,
) -> None:
    """Pass images through all layers.

    Args:
        images: float32 (samples * inputs,), channel by channel.
        weights: addresses of weights and bias of each layer; 0 for no bias.
        layers: (L + 1,), see `FIELDS`.
        places: the walks of all layers.
        samples: number of images.
        step: elements of the tape for a sample; 0 if all samples use the same ones, because none is needed later.
        tape: float32, written; COLUMNS more numbers follow those of the samples.
        index: the same memory, as int32.
        panels: float32, written.
        start: float32, written: the bias of a layer, with zeros after it.
        z: float32, written: the outputs of a layer before its pool, and COLUMNS more numbers.
        out: float32 (samples * outputs,), written, channel by channel.
    """
    depth = len(layers) - 1
    first, last = layers[0], layers[depth]
    pixels_in, pixels_out = first.height * first.width, last.height * last.width
    for k in range(depth):
        _pack(weights[2 * k], layers[k], panels)
    for b in range(samples):
        sample = b * step
        for k in range(depth):
            layer = layers[k]
            if layer.pad_h or layer.pad_w:
                at = sample + layer.x_at
                for i in range(at, at + (layer.height + 2 * layer.pad_h) * _line(layer)):
                    tape[i] = _0
        _to_pixels(images, b * pixels_in * first.inputs, first, tape, sample + first.x_at)
        for k in range(depth):
            layer, after = layers[k], layers[k + 1]
            least, address = _0 if layer.relu else _NONE, weights[2 * k + 1]
            for o in range(rounded_up(layer.outputs)):
                start[o] = one_at(address, o) if address and o < layer.outputs else _0
            target, at = (z, 0) if layer.pool else (tape, sample + after.x_at)
            panel_line = layer.kernel_w * layer.inputs * COLUMNS
            _convolve(
                target,
                at,
                layer.outputs,
                start,
                least,
                tape,
                sample + layer.x_at,
                _line(layer),
                panels,
                layer.panels,
                panel_line,
                layer.kernel_h * panel_line,
                places,
                layer.walk,
            )
            if layer.pool:
                _pool(z, layer, after, tape, index, sample)
        _transpose(tape, sample + last.x_at, pixels_out, last.inputs, out, b * pixels_out * last.inputs)


@owner
def backward(
    slopes: Vector,
    weights: Places,
    layers: Layers,
    places: Places,
    samples: Number,
    step: Number,
    tape: Vector,
    index: Integers,
    turned: Vector,
    sums: Vector,
    g: Vector,
    upper: Vector,
    lower: Vector,
    items: Places,
    factors: Vector,
    constants: Vector,
    out: Vector,
    below: Vector,
) -> None:
    """Compute the gradients of the weights and biases, and those of the images.

    Args:
        slopes: float32 (samples * outputs,), the gradient in the outputs.
        weights: as in `forward`.
        layers: as in `forward`.
        places: as in `forward`.
        samples: as in `forward`.
        step: as in `forward`; not 0.
        tape: as in `forward`.
        index: as in `forward`.
        turned: float32, written.
        sums: float32, written: sums of the gradients of all layers.
        g: float32, written: g of all layers, with the zeros around and between its pixels, and COLUMNS more numbers.
        upper: float32, written: the gradient in the padded inputs of a layer, and COLUMNS more numbers.
        lower: float32, written: the same of another layer.
        items: int64, written: places of numbers of g that are not zero, and counts of them.
        factors: float32, written: these numbers.
        constants: float32, as many zeros as the widest layer has channels, rounded up to panels, and a one.
        out: float32, written: weights and bias of each layer after one another.
        below: float32 (samples * inputs,), written; empty if it is not needed.
    """
    depth = len(layers) - 1
    first, last, lowest = layers[0], layers[depth], 0 if len(below) else 1
    pixels_in, pixels_out = first.height * first.width, last.height * last.width
    for i in range(len(sums)):
        sums[i] = _0
    for i in range(len(g)):
        g[i] = _0
    for k in range(lowest, depth):
        if layers[k].sparse:
            _pack_lines(weights[2 * k], layers[k], turned)
        else:
            _pack_turned(weights[2 * k], layers[k], turned)
    for b in range(samples):
        sample, d, other, at, line = b * step, upper, lower, 0, last.width * last.inputs
        _transpose(slopes, b * pixels_out * last.inputs, last.inputs, pixels_out, d, 0)
        for k in range(depth - 1, -1, -1):
            layer, after = layers[k], layers[k + 1]
            if layer.sparse:
                _sparse_sums(d[at:], line, layer, after, tape, index, sample, items, factors, sums)
                if k >= lowest:
                    _sparse_below(d[at:], line, layer, after, tape, index, sample, items, factors, turned, other)
                    d, other, at, line = other, d, _inside(layer), _line(layer)
                continue
            _slopes(d[at:], line, layer, after, tape, index, sample, g)
            _weight_sums(layer, tape, sample + layer.x_at, g, constants, sums)
            if k >= lowest:
                panel_line = layer.kernel_w * layer.outputs * COLUMNS
                at, line = 0, layer.width * layer.inputs
                _convolve(
                    d,
                    0,
                    layer.inputs,
                    constants,
                    _NONE,
                    g,
                    layer.g_memory,
                    layer.g_line,
                    turned,
                    layer.turned,
                    panel_line,
                    layer.kernel_h * panel_line,
                    places,
                    layer.walk_back,
                )
        if len(below):
            _to_channels(d[at:], line, first, below, b * pixels_in * first.inputs)
    for k in range(depth):
        if layers[k].sparse:
            _read_sparse_sums(layers[k], sums, out)
        else:
            _read_sums(layers[k], sums, out)


for _function in (forward, backward):
    cache.keep(_function)
    _function.compile(signature(_function.py_func))
    _function.disable_compile()
