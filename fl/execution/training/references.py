"""Passes of the models that a `LossOfOutputs` compares with, for clients that train together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fl.data.redrawn import RedrawnArrays
from fl.data.views import gathered
from fl.execution.training.chunk import Chunk, Gradients, PassesSamples
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs, ModelOutputs, constants_of, joined, models_of, with_constants
from fl.method.training_values import TrainingInputs
from fl.models.binding import bind
from fl.tensors.params import Params


def with_reference_passes(
    algorithm: LocalTraining, chunk: Chunk, inputs: TrainingInputs, backend: type[Gradients]
) -> Chunk:
    """Return the chunk with arrays of its training samples, which have the constants of their losses beside them.

    The new chunk has no rows without labels, because its phases take none. The arrays do not change if there are no
    reference models. They do not change either if training batches are random, or if a step takes several views: then
    `objective` makes the passes for each batch.
    """
    if not isinstance(algorithm, LossOfOutputs):
        return chunk
    chunk = replace(chunk, own_loss=algorithm)
    if chunk.augment or isinstance(chunk.arrays, RedrawnArrays) or not chunk.sizes.any():
        return chunk
    if any(phase.has_views for phase in algorithm.phases_of(inputs, chunk.round, chunk.rounds)):
        return chunk
    models = models_of(algorithm, inputs)
    if not models:
        return chunk
    ends = np.cumsum(chunk.sizes)
    positions = np.arange(ends[-1]) + np.repeat(chunk.starts - ends + chunk.sizes, chunk.sizes)
    x = chunk.arrays["x"]
    arrays = gathered(chunk.arrays, torch.from_numpy(chunk.rows[positions]).to(x.device))
    passes = {name: _passes(algorithm, chunk, model, arrays["x"], backend) for name, model in models.items()}
    arrays = with_constants(arrays, constants_of(algorithm, passes, chunk.config, chunk.task, int(ends[-1])))
    return replace(chunk, arrays=arrays, rows=np.arange(ends[-1]), starts=ends - chunk.sizes, unlabelled=None)


def _passes(algorithm: LossOfOutputs, chunk: Chunk, model: Params, x: Tensor, backend: type[Gradients]) -> ModelOutputs:
    """What a model computes for the samples x of each client, in order; `model` may be batched (C,)."""
    if issubclass(backend, PassesSamples) and model.layout == chunk.initial.trained.layout:
        return ModelOutputs(*backend.model_passes(chunk.module, model, x, chunk.sizes))
    found = []
    for client, own in enumerate(x.split(chunk.sizes.tolist())):
        bind(chunk.module, model.row(client) if model.batch else model, chunk.initial)
        found.append(algorithm.outputs_of(chunk.module.eval(), own))
    chunk.module.train()
    return joined(found)
