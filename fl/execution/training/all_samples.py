"""Gradients over all training samples of clients that train together, at parameters of each client."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.batches import gather
from fl.execution.training.chunk import Chunk, Gradients, MeansSquares, SquaresGradients
from fl.execution.training.fisher import mean_squares
from fl.execution.training.loop import GRADIENT_BATCH
from fl.method.local_training import LocalTraining
from fl.method.training_values import StepContext
from fl.models.binding import bind
from fl.tensors.params import Params, zeros_like
from fl.tensors.trees import stack


def mean_gradient(
    algorithm: LocalTraining, chunk: Chunk, params: Params, at: StepContext, backend: type[Gradients]
) -> Params:
    """Return the mean gradient over each client's training data, without Dropout; batched (C,)."""
    params = params if params.batch else params.layout.empty(len(chunk.sizes)).copy_(params)
    gradients, total, part = backend(algorithm, chunk, params, params, None), zeros_like(params), zeros_like(params)
    for batch, inside in _all_samples(chunk):
        weights = torch.as_tensor((inside / np.maximum(chunk.sizes, 1)[:, None]).astype(np.float32))
        gradients(params, batch, weights, [], at, part)
        total.add_(part)
    return total


def mean_squares_together(algorithm: LocalTraining, chunk: Chunk, params: Params, backend: type[Gradients]) -> Params:
    """Return each client's diagonal of the empirical Fisher information, see `fisher`; batched (C,)."""
    if issubclass(backend, MeansSquares):
        whole = backend.mean_squares(chunk, params)
        if whole is not None:
            return whole
    count = len(chunk.sizes)
    params = params if params.batch else params.layout.empty(count).copy_(params)
    if issubclass(backend, SquaresGradients):
        gradients, total = backend(algorithm, chunk, params, params, None), zeros_like(params)
        for batch, inside in _all_samples(chunk):
            gradients.add_squares(params, batch, torch.as_tensor(inside.astype(np.float32)), total)
        return total * torch.as_tensor(1 / np.maximum(chunk.sizes, 1))
    found = []
    for client in range(count):
        bind(chunk.module, params.row(client), chunk.initial)
        found.append(mean_squares(chunk.module.eval(), params.row(client), chunk.view(client), chunk.task))
    return stack(found)


def _all_samples(chunk: Chunk) -> Iterator[tuple[dict[str, Tensor], np.ndarray]]:
    """Yield all training samples in batches, name -> (C, B, ...), and which of them are no pads, (C, B)."""
    first = np.minimum(chunk.starts, len(chunk.rows) - 1)  # an empty client may start past the end
    for a in range(0, int(chunk.sizes.max()), GRADIENT_BATCH):
        columns = a + np.arange(min(GRADIENT_BATCH, int(chunk.sizes.max()) - a))
        inside = columns < chunk.sizes[:, None]
        positions = first[:, None] + np.where(inside, columns, 0)
        yield gather(chunk.arrays, torch.as_tensor(chunk.rows[positions])), inside
