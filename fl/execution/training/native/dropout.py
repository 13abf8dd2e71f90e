"""Dropout of one client's batch, with the masks of `fl/models/dropout.py`.

    h_k <- m_k * h_k                    before layer k; m: 0, or the factor of entries that are kept
    g <- m_k * g                        in the backward pass, before norm and activation

h_0 are the samples: their mask is drawn when they are gathered. Those of the other layers are drawn when the batch
begins, and stay for all gradients on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fl.execution.training.native.jit import in_caller, inlined, part
from fl.execution.training.native.memory import copy, padded
from fl.execution.training.native.shuffle import chained
from fl.execution.training.native.vector import WIDTH, load, store
from fl.models.dropout import HALVES
from fl.tensors import random

_0 = np.float32(0)
_mix = inlined(random.mix)


class Dropouts(NamedTuple):
    """The Dropout layers of a model, and the addresses of their masks.

    shares: int64 (L,), `share_of_zeros` of the inputs of each layer; 0: no Dropout.
    words: uint64, hashes of the addresses up to the number of the batch, (C,) or for each kind of batch (C, B); not
        read without Dropout.
    """

    shares: np.ndarray
    words: np.ndarray


class Masks(NamedTuple):
    """Memory of the masks of a batch; empty without Dropout.

    shares: int64 (L,), see `Dropouts`.
    factors: float32 (L, area), the masks of the layers' inputs. Pads hold zeros.
    inputs: float32 (L, area), the layers' inputs before they were masked.
    words: uint64, memory for the draws of one mask.
    """

    shares: np.ndarray
    factors: np.ndarray
    inputs: np.ndarray
    words: np.ndarray


@in_caller
def masks_memory(memory: np.ndarray, end: int, shares: np.ndarray, area: int) -> Masks:
    """The memory of masks for batches of `area` numbers, from memory[end] on."""
    depth = 0
    for share in shares:
        if share > 0:
            depth = len(shares)
    middle, last = end + depth * area, end + 2 * depth * area
    factors, inputs = memory[end:middle].reshape(depth, area), memory[middle:last].reshape(depth, area)
    factors[:] = _0
    return Masks(shares, factors, inputs, memory[last : last + (area if depth else 0)].view(np.uint64))


@inlined
def has_mask(masks: Masks, k: int) -> bool:
    """Whether the inputs of layer k are masked."""
    return len(masks.factors) > 0 and masks.shares[k] > 0


@part
def draw_mask(masks: Masks, word: np.uint64, number: int, call: int, k: int, n: int, count: int) -> None:
    """Draw the mask of layer k with n inputs, the one number `call` of batch `number`, for `count` samples."""
    words, halves, share = masks.words, masks.words.view(np.uint32), masks.shares[k]
    wide, key = padded(n), chained(chained(word, number), call)
    factor, least = np.float32(HALVES / (HALVES - share)), np.uint32(share)
    for i in range((count * n + 1) // 2):
        words[i] = _mix(key + np.uint64(i + 1) * random.GOLDEN)
    for b in range(count):
        own, drawn = masks.factors[k, b * wide : b * wide + n], halves[b * n : (b + 1) * n]
        for i in range(n):
            own[i] = factor if drawn[i] >= least else _0


@inlined
def mask_samples(
    masks: Masks, word: np.uint64, number: int, layers: np.ndarray, count: int, samples: np.ndarray
) -> None:
    """Draw the mask of the `count` samples of batch `number`, and mask them."""
    if has_mask(masks, 0):
        draw_mask(masks, word, number, 0, 0, layers[0, 0], count)
        mask_inputs(masks, 0, samples, count * padded(layers[0, 0]))


@inlined
def draw_masks(masks: Masks, word: np.uint64, number: int, layers: np.ndarray, count: int) -> None:
    """Draw the masks of the hidden layers for the `count` samples of batch `number`."""
    call = 1 if has_mask(masks, 0) else 0
    for k in range(1, len(layers)):
        if has_mask(masks, k):
            draw_mask(masks, word, number, call, k, layers[k, 0], count)
            call += 1


@part
def take_masks(masks: Masks, rows: np.ndarray, first: int, layers: np.ndarray, count: int, samples: np.ndarray) -> None:
    """Copy the masks of `count` samples from rows[first :], which hold those of all layers; mask the samples."""
    column, flat, width = 0, rows.reshape(-1), rows.shape[1]
    for k in range(len(layers)):
        if has_mask(masks, k):
            n = layers[k, 0]
            for b in range(count):
                copy(flat, (first + b) * width + column, n, masks.factors[k], b * padded(n))
            column += n
    if has_mask(masks, 0):
        mask_inputs(masks, 0, samples, count * padded(layers[0, 0]))


@inlined
def mask_inputs(masks: Masks, k: int, h: np.ndarray, n: int) -> None:
    """h[:n] <- m h[:n], the inputs of layer k; keep h."""
    factors, inputs = masks.factors[k], masks.inputs[k]
    for i in range(0, n, WIDTH):
        v = load(h, i)
        store(inputs, i, v)
        store(h, i, v * load(factors, i))


@inlined
def mask_gradient(masks: Masks, k: int, g: np.ndarray, n: int) -> None:
    """g[:n] <- m g[:n], the gradient in the inputs of layer k."""
    factors = masks.factors[k]
    for i in range(0, n, WIDTH):
        store(g, i, load(g, i) * load(factors, i))
