"""Dropout whose random draws are addressed: the engine draws the masks, per client, and the layers only read them.

    key = hash64(seed, client, participation, "dropout/phase", step, call)          call: number of the layer's call
    factor of entry j = 0 if half j of the SplitMix64 stream of `key` is below `share_of_zeros(p)`, else `scale(share)`

A half is 32 bits of a word, the lower one first. So a mask depends neither on the machine, nor on the plan, nor on the
masks before it, and machine code draws the same one (fl/execution/training/native/dropout.py).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fl.checks import within
from fl.models.hooks import layer_inputs
from fl.tensors import random

HALVES = 1 << 32  # values of half a random word


class _Passes(threading.local):
    """What Dropout layers of this thread do with their masks: append them to a list, or take them from an iterator."""

    recorded: list[Tensor] | None = None
    replayed: Iterator[Tensor] | None = None


_passes = _Passes()


@contextmanager
def recorded_masks(masks: list[Tensor]) -> Iterator[None]:
    """Within: each call of a Dropout layer appends its mask to `masks`."""
    before, _passes.recorded = _passes.recorded, masks
    try:
        yield
    finally:
        _passes.recorded = before


@contextmanager
def replayed_masks(masks: list[Tensor]) -> Iterator[None]:
    """Within: calls of Dropout layers use `masks`, one after another, and draw none."""
    before, _passes.replayed = _passes.replayed, iter(masks)
    try:
        yield
    finally:
        _passes.replayed = before


def share_of_zeros(p: float) -> int:
    """Return how many of the `HALVES` values of half a word are a zero, at probability p in [0, 1); 0 only for p = 0.

    >>> share_of_zeros(0.25) == HALVES // 4, share_of_zeros(1e-20)
    (True, 1)
    """
    return min(max(round(p * HALVES), int(p > 0)), HALVES - 1)


def scale(share: int) -> float:
    """Return the factor of entries that are kept, 1 / (1 - share / HALVES).

    >>> scale(share_of_zeros(0.5))
    2.0
    """
    return HALVES / (HALVES - share)


def draw_masks(keys: np.ndarray, length: int, p: float) -> Tensor:
    """Draw the masks (C, length) of the keys, uint64 (C,). The first entries do not depend on `length`.

    >>> sorted({float(factor) for factor in draw_masks(np.arange(2, dtype=np.uint64), 99, 0.5).flatten()})
    [0.0, 2.0]
    """
    halves = random.random_words(keys, 0, -(-length // 2)).view(np.uint32)[:, :length]
    share = share_of_zeros(p)
    return torch.from_numpy(np.multiply(halves >= share, np.float32(scale(share)), dtype=np.float32))


class Dropout(nn.Module):
    """Zero entries with probability p and scale the rest by 1 / (1 - p).

    In training the engine either sets `mask` (B, *features) before each step, or sets `draws`, from which the layer
    gets a mask of its input's shape. Without either the module refuses to run.

    Args:
        p: probability of a zero, in [0, 1).

    Attributes:
        mask: factors of the input's entries, 0 or 1 / (1 - p).
        draws: draws masks.
        repeats: whether each call draws a new mask; otherwise later calls on the same batch use the first one.
        piece: (position of the first sample, samples of the batch) if the input is a micro batch, else None. Each call
            in the first micro batch draws a mask for the whole batch; the others use their rows of it. An input of
            another shape has a mask of its own.
        calls: number of masks drawn on the current batch.
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        within("[0, 1)", p=p)
        self.p = p
        self.mask: Tensor | None = None
        self.draws: DropoutDraws | None = None
        self.repeats, self.calls = False, 0
        self.piece: tuple[int, int] | None = None
        self.masks: list[Tensor] = []  # of the calls in a micro batch, for the whole batch
        self.position = 0  # of the next call among them

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if _passes.replayed is not None:
            return x * next(_passes.replayed)
        mask = self._mask(x)
        if _passes.recorded is not None:
            _passes.recorded.append(mask)
        return x * mask

    def _mask(self, x: Tensor) -> Tensor:
        """The factors of x: set by the engine, or drawn."""
        if self.draws is None:
            if self.mask is None:
                raise RuntimeError(
                    "fl.models.dropout.Dropout in training mode has no mask and draws none; "
                    "the engine sets one of them before each step"
                )
            return self.mask
        if self.piece is not None:
            return self._mask_of_piece(x, *self.piece)
        mask = self.mask
        if mask is None or self.repeats or mask.shape != x.shape:
            mask = self._drawn(x.shape, x)
            if self.mask is None:
                self.mask = mask
        return mask

    def _mask_of_piece(self, x: Tensor, first: int, samples: int) -> Tensor:
        """The rows `first`, ... of this call's mask for `samples` samples; a new mask if these do not fit x."""
        if self.position == len(self.masks):
            self.masks.append(self._drawn((samples, *x.shape[1:]), x))
        rows = self.masks[self.position][first : first + len(x)]
        self.position += 1
        return rows if rows.shape == x.shape else self._drawn(x.shape, x)

    def _drawn(self, shape: tuple[int, ...], x: Tensor) -> Tensor:
        """A new mask on the device of x. The draws do not depend on the device."""
        assert self.draws is not None
        self.calls += 1
        return self.draws.draw(shape, self.p).to(x.device)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def with_addressed_dropout(module: nn.Module) -> nn.Module:
    """The module with every nn.Dropout replaced by ours, which does not depend on a global generator."""
    if type(module) is nn.Dropout:
        return Dropout(module.p)
    for name, child in list(module._modules.items()):  # named_children() skips a module's second use
        if child is not None:
            setattr(module, name, with_addressed_dropout(child))
    return module


class DropoutDraws:
    """Has Dropout layers draw their masks, for one client at a time.

    Several gradients on one batch see the same masks.

    Args:
        layers: the model's Dropout layers.
        address: of the draws, up to the number of the batch.
        repeats: whether each call of a layer draws a new mask, because the model calls some layer several times.
        micro_batches: whether a gradient has several passes, each after `begin_micro_batch`.
    """

    def __init__(
        self, layers: Iterable[Dropout], address: Sequence[int | str], repeats: bool, micro_batches: bool = False
    ):
        self.layers = [layer for layer in layers if layer.p > 0]
        self.repeats, self.micro_batches = repeats, micro_batches
        self.word = random.hash64_prefix(2, *address) if self.layers else np.uint64(0)
        self.batch, self.call = 0, 0
        self.masks: list[Tensor | None] = []

    def begin_batch(self, number: int) -> None:
        """Begin the batch with this number, whose passes see new masks."""
        self.batch, self.call, self.masks = number, 0, [None] * len(self.layers)

    def begin_micro_batch(self, first: int, samples: int) -> None:
        """Begin the micro batch at position `first` of a batch of `samples` samples."""
        for layer in self.layers:
            layer.piece, layer.position = (first, samples), 0

    def draw(self, shape: Sequence[int], p: float) -> Tensor:
        """Draw the mask of the next call."""
        key = mask_keys(np.atleast_1d(self.word), self.batch, self.call)
        self.call += 1
        return draw_masks(key, math.prod(shape), p).view(*shape)

    @contextmanager
    def gradient(self) -> Iterator[None]:
        """Within: the passes of one gradient on the batch. All gradients on one batch see the same masks."""
        if not self.layers:
            yield
            return
        if self.repeats or self.micro_batches:  # the masks are drawn again
            self.call = 0
        for layer, mask in zip(self.layers, self.masks):
            layer.mask, layer.draws, layer.repeats, layer.calls = mask, self, self.repeats, 0
            layer.piece, layer.masks = None, []  # of a client that failed
        yield
        if not self.micro_batches:
            self.masks = [layer.mask for layer in self.layers]
        for layer in self.layers:
            layer.mask = layer.draws = layer.piece = None


class DropoutMasks:
    """Draws the masks of a module's Dropout layers, for several clients at once.

    Args:
        module: the model.
        sample: returns one input, (1, ...), which shows the layers' shapes; called only if there are layers.

    Attributes:
        layers: the Dropout layers with p > 0.
        shapes: the shape of each layer's inputs without the sample axis, in the order in which the model calls the
            layers.
    """

    def __init__(self, module: nn.Module, sample: Callable[[], Tensor]):
        named = {name: m for name, m in module.named_modules() if isinstance(m, Dropout) and m.p > 0}
        self.layers = list(named.values())
        self.shapes: dict[Dropout, tuple[int, ...]] = {}
        if not named:
            return
        training = module.training
        module.eval()
        with torch.no_grad(), layer_inputs(module, *named) as seen:
            module(sample())
        module.train(training)
        for name, x in seen:
            if named[name] in self.shapes:
                raise ValueError("a Dropout layer is used twice in one forward pass; give each use a layer of its own")
            self.shapes[named[name]] = x.shape[1:]

    def draw(self, words: np.ndarray, batch: int, samples: int) -> list[Tensor]:
        """Draw a mask (C, samples, *features) for each layer. A client with fewer samples has the first rows.

        Args:
            words: hashes of the addresses up to the number of the batch, uint64 (C,).
            batch: number of the batch.
            samples: samples of the largest batch.
        """
        masks = []
        for call, (layer, shape) in enumerate(self.shapes.items()):
            mask = draw_masks(mask_keys(words, batch, call), samples * math.prod(shape), layer.p)
            masks.append(torch.as_tensor(mask.view(len(words), samples, *shape)))
        return masks

    def set(self, masks: Sequence[Tensor | None]) -> None:
        """Give each layer its mask for the next forward pass."""
        for layer, mask in zip(self.shapes, masks):
            layer.mask, layer.draws = mask, None


def mask_keys(words: np.ndarray, batch: int, call: int) -> np.ndarray:
    """Return the keys of the masks of a call on a batch, uint64 (C,). `words` hold the address up to there."""
    with np.errstate(over="ignore"):
        return random.chained(random.chained(words, np.uint64(batch)), np.uint64(call))
