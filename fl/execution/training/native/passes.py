"""Forward and backward pass of one client's batch through a layer and what follows it.

`tape` (batches, area) has the inputs of the layers, then the outputs, then two gradients; if layers are normalised,
then the activations before that. Last, in clients.py, come the inputs of the next batch.
"""

from __future__ import annotations

import numpy as np

from fl.execution.training.native.dropout import Masks, has_mask, mask_gradient, mask_inputs
from fl.execution.training.native.jit import inlined
from fl.execution.training.native.memory import padded, weights_length
from fl.execution.training.native.norms import normalise, normalise_backward
from fl.execution.training.native.products import IDENTITY, activate, backward, forward, times_slope


@inlined
def products(client: np.ndarray, layers: np.ndarray, k: int, h: np.ndarray, z: np.ndarray, count: int) -> None:
    """z <- h W^T + b of layer k."""
    n_in, n_out, offset = layers[k, 0], layers[k, 1], layers[k, 5]
    forward(client[offset:], client[offset + weights_length(n_in, n_out) :], h, z, count, n_in, n_out)


@inlined
def any_norm(layers: np.ndarray) -> bool:
    """Whether a layer is normalised."""
    found = False
    for k in range(len(layers)):
        found = found or layers[k, 6] > 0
    return found


@inlined
def before_norm(layers: np.ndarray, k: int, normalised: bool) -> int:
    """The row of the tape where the activations of layer k are computed."""
    return len(layers) + 3 + k if normalised and layers[k, 6] else k + 1


@inlined
def forward_pass(
    client: np.ndarray,
    layers: np.ndarray,
    tape: np.ndarray,
    scales: np.ndarray,
    count: int,
    normalised: bool,
    masks: Masks,
) -> None:
    """Write the outputs of all layers for `count` samples to the tape, which has the `products` of the first layer.

    The inputs of the first layer are masked already.
    """
    for k in range(len(layers)):
        n_out, activation, norm, h = layers[k, 1], layers[k, 4], layers[k, 6], tape[before_norm(layers, k, normalised)]
        if k:
            if has_mask(masks, k):
                mask_inputs(masks, k, tape[k], count * padded(layers[k, 0]))
            products(client, layers, k, tape[k], h, count)
        activate(h, count, n_out, activation)
        if normalised and norm:
            normalise(h, tape[k + 1], scales[k], count, n_out, norm)


@inlined
def backward_pass(
    weight: np.ndarray,
    layers: np.ndarray,
    tape: np.ndarray,
    scales: np.ndarray,
    g: np.ndarray,
    k: int,
    count: int,
    normalised: bool,
    masks: Masks,
    below: np.ndarray,
) -> None:
    """below <- the gradient in the outputs of layer k - 1, from the gradient g in those of layer k."""
    depth, n_in, n_out = len(layers), layers[k, 0], layers[k, 1]
    activation, norm = layers[k - 1, 4], layers[k - 1, 6] if normalised else 0
    masked = has_mask(masks, k)
    backward(weight, g, tape[k], count, n_in, n_out, IDENTITY if norm or masked else activation, below)
    outputs = masks.inputs[k] if masked else tape[k]
    if masked:
        mask_gradient(masks, k, below, count * padded(n_in))
    if norm:
        h = tape[depth + 2 + k]
        normalise_backward(below, outputs, h, scales[k - 1], count, n_in, norm, activation)
    elif masked:
        times_slope(below, outputs, count * padded(n_in), activation)
