"""Passes of the models that a `LossOfOutputs` compares with, for clients that train together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fl.data.redrawn import RedrawnArrays
from fl.data.views import Chosen
from fl.execution.training.chunk import Chunk, Gradients, PassesOfSome, PassesSamples
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs, ModelOutputs, constants_of, joined, models_of, with_constants
from fl.method.training_values import TrainingInputs
from fl.models.binding import bind
from fl.tensors.params import Params
from fl.tensors.trees import leaves


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
    rows = torch.from_numpy(chunk.rows[positions]).to(chunk.arrays["x"].device)
    passes: dict[str, ModelOutputs] = {}
    for name, model in models.items():
        known = _known(algorithm, chunk, inputs, model, models, passes)
        passes[name] = _passes(algorithm, chunk, model, rows, backend, known)
    constants = constants_of(algorithm, passes, chunk.config, chunk.task, int(ends[-1]))
    arrays = Chosen(chunk.arrays, rows, with_constants({}, constants))
    return replace(chunk, arrays=arrays, rows=np.arange(ends[-1]), starts=ends - chunk.sizes, unlabelled=None)


def _known(
    algorithm: LossOfOutputs,
    chunk: Chunk,
    inputs: TrainingInputs,
    model: Params,
    models: Mapping[str, Params],
    passes: Mapping[str, ModelOutputs],
) -> PassesOfSome | None:
    """The passes that clients without a state need not make: their first state holds a model that all clients share.

    A new client of MOON is an example: its previous model is the received one.
    """
    has = np.array([s is not None for s in chunk.states]) if chunk.known_states is None else chunk.known_states[0]
    if not model.batch or not passes or has.all():
        return None
    first = leaves(algorithm.first_state(replace(inputs, state=None)))
    of_new = {id(of_all): of_one for of_all, of_one in zip(leaves(inputs.state), first)}
    for name, found in passes.items():
        if all(of_new.get(id(mine)) is its for mine, its in zip(model.buffers, models[name].buffers)):
            return ~has, found.outputs, found.features
    return None


def _passes(
    algorithm: LossOfOutputs,
    chunk: Chunk,
    model: Params,
    rows: Tensor,
    backend: type[Gradients],
    known: PassesOfSome | None,
) -> ModelOutputs:
    """What a model computes for the samples at `rows`, those of each client in order; `model` may be batched (C,)."""
    x = chunk.arrays["x"]
    if known is not None and known[0].all():
        return ModelOutputs(*known[1:])
    if issubclass(backend, PassesSamples) and model.layout == chunk.initial.trained.layout:
        return ModelOutputs(*backend.model_passes(chunk, model, x, rows.numpy(), known))
    found = []
    for client, own in enumerate(rows.split(chunk.sizes.tolist())):
        bind(chunk.module, model.row(client) if model.batch else model, chunk.initial)
        found.append(algorithm.outputs_of(chunk.module.eval(), x.index_select(0, own)))
    chunk.module.train()
    return joined(found)
