"""Losses: the gradient of a batch's mean loss with respect to the outputs, and the sum of the losses."""

from __future__ import annotations

import numpy as np

from fl.execution.training.native.jit import inlined, part
from fl.execution.training.native.memory import padded
from fl.execution.training.native.vector import (
    WIDTH,
    add_in_order,
    exp,
    first_lanes,
    larger,
    largest,
    load,
    one,
    splat,
    store,
)

_0, _1, _LEAST = np.float32(0), np.float32(1), np.float32(-np.inf)


@inlined
def cross_entropy(outputs: np.ndarray, labels: np.ndarray, samples: np.ndarray, classes: int, g: np.ndarray) -> float:
    """g <- (softmax - onehot) / B; returns the sum of the losses. The exponentials are added in the classes' order."""
    loss, across, count = 0.0, padded(classes), _1 / np.float32(len(samples))
    whole, none = classes - classes % WIDTH, splat(_LEAST)
    for b in range(len(samples)):
        at, most = b * across, none
        for k in range(0, classes, WIDTH):
            most = larger(first_lanes(load(outputs, at + k), classes - k, none), most)
        most = splat(largest(most))
        for k in range(at, at + across, WIDTH):
            store(g, k, load(outputs, k) - most)
        loss -= one(g, at + labels[samples[b]])
    for i in range(0, len(samples) * across, WIDTH):
        store(g, i, exp(load(g, i)))
    for b in range(len(samples)):
        at, total = b * across, _0
        for k in range(at, at + whole, WIDTH):
            total = add_in_order(total, g, k)
        for k in range(at + whole, at + classes):
            total += one(g, k)
        loss += np.log(total)
        share = splat(count / total)
        for k in range(0, across, WIDTH):
            store(g, at + k, first_lanes(load(g, at + k) * share, classes - k, splat(_0)))
        g[at + labels[samples[b]]] -= count
    return loss


@part
def squared_error(outputs: np.ndarray, targets: np.ndarray, samples: np.ndarray, g: np.ndarray) -> float:
    """g <- (outputs - targets) / B; returns the sum of the losses."""
    loss, across, count = 0.0, padded(targets.shape[1]), _1 / np.float32(len(samples))
    for b in range(len(samples)):
        total, at = _0, b * across
        for k in range(targets.shape[1]):
            difference = outputs[at + k] - targets[samples[b], k]
            total += difference * difference
            g[at + k] = difference * count
        g[at + targets.shape[1] : at + across] = _0
        loss += float(total / 2)
    return loss


@inlined
def losses_and_gradient(
    outputs: np.ndarray, labels: np.ndarray, targets: np.ndarray, samples: np.ndarray, classes: int, g: np.ndarray
) -> tuple[int, float]:
    """g <- the gradient of the mean loss. Returns -1 and the sum of the losses.

    The loss is cross-entropy if there are `labels`, else the squared error of `targets`. If the label of a sample is no
    class, the sample's number is returned, and g does not change.
    """
    if len(labels):
        for sample in samples:
            if not 0 <= labels[sample] < classes:
                return sample, 0.0
        return -1, cross_entropy(outputs, labels, samples, classes, g)
    return -1, squared_error(outputs, targets, samples, g)
