"""Runs of convolutions, ReLUs and max-pools in machine code: native/convolutions.py as a function that torch derives.

Gradients that are to have gradients themselves (create_graph) are torch's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from fl.execution.training.compiled import thread_memory
from fl.tensors.params import ALIGNMENT

POOL = 2  # side of the windows of max-pools
TALL = 4  # rows of pixels from which columns at the edges are worth tiles of their own


class Convolution(NamedTuple):
    """A convolution with what follows it."""

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool
    pool: bool


def convolutions(layers: Sequence[nn.Module]) -> tuple[Convolution, ...]:
    """Return what a run of layers computes. It begins with a convolution; `takes` holds for each layer."""
    found: list[Convolution] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            sizes = _pair(layer.kernel_size), _pair(layer.stride), padding(layer)
            found.append(Convolution(layer.in_channels, layer.out_channels, *sizes, False, False))
        elif isinstance(layer, nn.ReLU):
            found[-1] = found[-1]._replace(relu=True)
        else:
            found[-1] = found[-1]._replace(pool=True)
    return tuple(found)


def padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of zeros on each side of the images."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        return layer.kernel_size[0] // 2, layer.kernel_size[1] // 2
    return _pair(layer.padding)


def takes(layer: nn.Module) -> bool:
    """Whether machine code knows the layer."""
    if "forward" in vars(layer):  # replaced for this object
        return False
    if type(layer) is nn.Conv2d:
        sizes = zip(layer.kernel_size, padding(layer))
        plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        even = layer.padding == "same" and not all(size % 2 for size in layer.kernel_size)
        return plain and not even and all(pad < size for size, pad in sizes)
    if type(layer) is nn.MaxPool2d:
        sides = {_pair(size) for size in (layer.kernel_size, layer.stride)}
        plain = _pair(layer.padding) == (0, 0) and _pair(layer.dilation) == (1, 1) and not layer.ceil_mode
        return sides == {(POOL, POOL)} and plain and not layer.return_indices
    return type(layer) is nn.ReLU


def _pair(size: Any) -> tuple[int, int]:
    """Sizes of both dimensions; torch takes one number for both."""
    return (size, size) if isinstance(size, int) else tuple(size)


@dataclass(frozen=True, eq=False)
class Passes:
    """How images of one size pass through a run, see native/convolutions.py.

    layers: (L + 1,), a structured array.
    places: int64, the walks over the pixels.
    outputs: (channels, height, width) of the outputs of an image.
    weights: shapes of the weights; biases have the first of these sizes.
    tape: elements of the tape for a sample.
    ahead: elements of the arrays in memory that a forward pass writes.
    back: elements of those that a backward pass writes.
    constants: float32, zeros and a one.
    """

    layers: np.ndarray
    places: np.ndarray
    outputs: tuple[int, int, int]
    weights: tuple[tuple[int, ...], ...]
    tape: int
    ahead: tuple[int, ...]
    back: tuple[int, ...]
    constants: np.ndarray


@functools.lru_cache(maxsize=32)
def passes(run: tuple[Convolution, ...], height: int, width: int, below: bool) -> Passes | None:
    """Return how images pass through a run; None if they are too small for it.

    Args:
        run: the convolutions.
        height: rows of an image.
        width: columns of an image.
        below: whether the gradient in the images is computed.
    """
    from fl.execution.training.native.convolutions import COLUMNS, FIELDS, LAYER, rounded_up

    rows: list[tuple[int, ...]] = []
    up, places = rounded_up.py_func, [np.empty(0, np.int64)]
    tape = g = panels = turned = sums = gradient = before_pool = items = 0
    most = run[0].inputs * height * width
    for k, layer in enumerate(run):
        (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w) = layer.kernel, layer.stride, layer.padding
        line, area, n_in, n_out = width + 2 * pad_w, kernel_h * kernel_w, layer.inputs, layer.outputs
        out_h, out_w = (height + 2 * pad_h - kernel_h) // stride_h + 1, (line - kernel_w) // stride_w + 1
        next_h, next_w = (out_h // POOL, out_w // POOL) if layer.pool else (out_h, out_w)
        if min(out_h, out_w, next_h, next_w) < 1:
            return None
        after_h, after_w = run[k + 1].padding if k + 1 < len(run) else (0, 0)
        y, x = np.indices((out_h, out_w))
        to = y * out_w + x if layer.pool else (y + after_h) * (next_w + 2 * after_w) + after_w + x
        of = y * stride_h * line + x * stride_w
        down = _taps(height, kernel_h, stride_h, pad_h, out_h)
        across = _taps(width, kernel_w, stride_w, pad_w, out_w)
        walks = [_walk(to * n_out, of * n_in, line * n_in, n_in, kernel_w, down, across)]
        sparse = layer.pool and n_in >= COLUMNS
        g_line, g_at, g_row, g_step, g_rows = out_w, 0, out_w, 1, 0 if sparse else out_h
        if (k or below) and not sparse:  # zeros around g, and between its pixels
            g_line, g_rows = width + kernel_w - 1, height + kernel_h - 1
            top, left = kernel_h - 1 - pad_h, kernel_w - 1 - pad_w
            g_at, g_row, g_step = top * g_line + left, stride_h * g_line, stride_w
            y, x = np.indices((height, width))
            down = _taps((out_h - 1) * stride_h + 1, kernel_h, 1, top, height)
            across = _taps((out_w - 1) * stride_w + 1, kernel_w, 1, left, width)
            of = y * g_line + x
            walks.append(_walk((y * width + x) * n_in, of * n_out, g_line * n_out, n_out, kernel_w, down, across))
        x_at, index_at = tape, tape + up((height + 2 * pad_h) * line * n_in)
        tape = index_at + up(next_h * next_w * n_out * layer.pool)
        walk = sum(map(len, places))
        rows.append(
            (
                *(n_in, height, width, pad_h, pad_w, x_at, n_out, kernel_h, kernel_w, stride_h, stride_w),
                *(out_h, out_w, layer.relu, layer.pool, sparse, index_at, walk, walk + len(walks[0]), panels, turned),
                *(g, g_line * n_out, g + g_at * n_out, g_row * n_out, g_step * n_out, sums, gradient),
            )
        )
        places += walks
        g += g_rows * g_line * n_out
        panels += area * n_in * up(n_out)
        lines = n_out * kernel_h * up(kernel_w * n_in)
        turned += (lines if sparse else area * n_out * up(n_in)) * bool(k or below)
        sums += lines + up(n_out) if sparse else (area * n_in + 1) * up(n_out)
        gradient += (area * n_in + 1) * n_out
        before_pool = max(before_pool, out_h * out_w * n_out * layer.pool)
        most = max(most, next_h * next_w * n_out, (height + 2 * pad_h) * line * n_in)
        items = max(items, next_h * next_w, 4 * (n_out + 1) * next_w)
        height, width = next_h, next_w
    outputs, widest = run[-1].outputs, up(max(max(layer.inputs, layer.outputs) for layer in run))
    rows.append((outputs, height, width, 0, 0, tape, *[0] * (len(FIELDS) - 6)))
    constants = np.zeros(widest + 1, np.float32)
    constants[-1] = 1
    return Passes(
        np.array(rows, LAYER),
        np.concatenate(places),
        (outputs, height, width),
        tuple((layer.outputs, layer.inputs, *layer.kernel) for layer in run),
        tape + up(height * width * outputs),
        (panels, widest, before_pool + COLUMNS),
        (turned, sums, g + COLUMNS, most + COLUMNS, most + COLUMNS, 2 * items, items),
        constants,
    )


def _taps(size: int, kernel: int, stride: int, pad: int, out: int) -> list[tuple[int, int]]:
    """For each of `out` rows of pixels: the rows of the kernel that do not meet padding, from the first to the end."""
    met = []
    for y in range(out):
        first, end = max(0, pad - y * stride), min(kernel, size + pad - y * stride)
        met.append((first, end) if first < end else (0, 1))  # zeros only
    return met


def _walk(
    to: np.ndarray,
    of: np.ndarray,
    line: int,
    channels: int,
    kernel: int,
    down: list[tuple[int, int]],
    across: list[tuple[int, int]],
) -> np.ndarray:
    """Return a walk over pixels, see native/convolutions.py.

    Args:
        to: where each pixel is written, (rows, columns).
        of: where its inputs begin, likewise.
        line: elements of a row of the inputs.
        channels: of the inputs.
        kernel: columns of the kernel.
        down: rows of the kernel that are needed for each row of pixels.
        across: columns of the kernel that are needed for each column of pixels.
    """
    from fl.execution.training.native.convolutions import COLUMNS

    found: list[np.ndarray] = []
    for (top, bottom), ys in _equal(down):
        columns = _equal(across)
        if len(ys) < TALL:
            columns = [((min(first for first, _ in across), max(end for _, end in across)), range(len(across)))]
        for (left, right), xs in columns:
            part = np.s_[ys.start : ys.stop, xs.start : xs.stop]
            shift = (top * kernel + left) * channels * COLUMNS
            group = len(ys) * len(xs), shift, (right - left) * channels, bottom - top
            found += [np.array(group), to[part].ravel(), of[part].ravel() + top * line + left * channels]
    return np.concatenate([*found, np.zeros(1, np.int64)]).astype(np.int64)


def _equal(taps: list[tuple[int, int]]) -> list[tuple[tuple[int, int], range]]:
    """Ranges of rows that need the same rows of the kernel."""
    found, start = [], 0
    for needed, rows in groupby(taps):
        end = start + len(list(rows))
        found.append((needed, range(start, end)))
        start = end
    return found


def compute(run: tuple[Convolution, ...], x: Tensor, weights: Sequence[Tensor | None]) -> Tensor | None:
    """Return the outputs of a run; None if machine code cannot compute them.

    Args:
        run: what `convolutions` returns.
        x: images (B, channels, height, width).
        weights: weight and bias of each convolution.
    """
    if torch.jit.is_tracing() or forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu"):
        return None
    weights = [None if weight is None else weight.contiguous() for weight in weights]
    tensors = [x, *(weight for weight in weights if weight is not None)]
    if x.ndim != 4 or not all(map(_plain, tensors)) or not len(x) or x.shape[1] != run[0].inputs:
        return None
    if torch._C._functorch.maybe_current_level() is not None:
        return None
    if (found := passes(run, *x.shape[2:], x.requires_grad and torch.is_grad_enabled())) is None:
        return None
    shapes = [shape for weight in found.weights for shape in (weight, weight[:1])]
    if any(tensor is not None and tensor.shape != shape for tensor, shape in zip(weights, shapes)):
        return None  # a layer whose tensors were cut, for example
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return _outputs(found, x, weights, 0)[0]
    result: Tensor = _Convolutions.apply(run, found, x, *weights)
    return result


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one of float32 on a CPU."""
    known = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32
    return known and tensor.is_cpu and tensor.layout == torch.strided and not tensor.is_neg()


class _Convolutions(torch.autograd.Function):
    """A run of convolutions with their gradients."""

    @staticmethod
    def forward(ctx: Any, run: tuple[Convolution, ...], found: Passes, x: Tensor, *weights: Tensor | None) -> Tensor:
        ctx.run, ctx.passes, ctx.biases = run, found, weights[1::2]
        out, tape = _outputs(found, x, weights, found.tape)
        ctx.save_for_backward(tape, x, *weights[::2])  # first derivatives need no biases
        return out

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> Any:
        from fl.execution.training.native.convolutions import backward

        found, (tape, x, *kernels) = ctx.passes, ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]  # of x and of weights
        if torch.is_grad_enabled():  # create_graph
            weights = [each for pair in zip(kernels, ctx.biases) for each in pair]
            return None, None, *_gradients_by_torch(ctx.run, [x, *weights], slopes, needed)
        weights = [each for kernel in kernels for each in (kernel, None)]
        out = _empty(sum(math.prod(shape) + shape[0] for shape in found.weights))
        below = _empty(*(x.shape if needed[0] else (0,)))
        *memory, items, factors = _split(found.back)
        backward(
            *(_flat(slopes), _addresses(weights), found.layers, found.places, len(slopes), found.tape),
            *(tape.numpy(), tape.view(torch.int32).numpy(), *memory, items.view(np.int64), factors, found.constants),
            *(_flat(out), _flat(below)),
        )
        shapes = [size for shape in found.weights for size in (shape, shape[:1])]
        parts = [part.view(shape) for part, shape in zip(out.split([math.prod(shape) for shape in shapes]), shapes)]
        return None, None, *(part if wanted else None for part, wanted in zip([below, *parts], needed))


def _gradients_by_torch(
    run: tuple[Convolution, ...], tensors: Sequence[Tensor | None], slopes: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return gradients that have gradients themselves, None for those that are not `needed`.

    Args:
        run: the convolutions.
        tensors: images, then weight and bias of each convolution.
        slopes: gradient in the outputs of the run.
        needed: for each of the tensors.
    """
    own = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]  # a tensor may be there twice
    out = own[0]
    for layer, weight, bias in zip(run, own[1::2], own[2::2]):
        assert out is not None and weight is not None
        out = F.conv2d(out, weight, bias, layer.stride, layer.padding)
        out = F.max_pool2d(out, POOL) if layer.pool else out
        out = out.relu() if layer.relu else out
    assert out is not None
    asked = [tensor for tensor, wanted in zip(own, needed) if wanted and tensor is not None]
    found = iter(torch.autograd.grad(out, asked, slopes, create_graph=True))
    return [next(found) if wanted else None for wanted in needed]


def _outputs(found: Passes, x: Tensor, weights: Sequence[Tensor | None], step: int) -> tuple[Tensor, Tensor]:
    """Return the outputs and the tape, with `step` elements for a sample."""
    from fl.execution.training.native.convolutions import COLUMNS, forward

    out, tape = _empty(len(x), *found.outputs), _empty((step * len(x) or found.tape) + COLUMNS)
    forward(
        *(_flat(x), _addresses(weights), found.layers, found.places, len(x), step),
        *(tape.numpy(), tape.view(torch.int32).numpy(), *_split(found.ahead), _flat(out)),
    )
    return out, tape


def _empty(*shape: int) -> Tensor:
    """A tensor for machine code, whatever torch's default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _flat(tensor: Tensor) -> np.ndarray:
    """All elements in one dimension, the same memory if they lie in one piece."""
    return tensor.detach().contiguous().view(-1).numpy()


def _addresses(weights: Sequence[Tensor | None]) -> np.ndarray:
    """Where the weights begin in memory; 0 for None."""
    return np.array([0 if weight is None else weight.data_ptr() for weight in weights])


def _split(sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Arrays of these sizes, in memory that all calls of this thread share. Each begins where a tensor may begin."""
    steps = [-(-4 * size // ALIGNMENT) * (ALIGNMENT // 4) for size in sizes]
    memory, at = thread_memory(sum(steps)), 0
    for size, step in zip(sizes, steps):
        yield memory[at : at + size]
        at += step
