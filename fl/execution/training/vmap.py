"""Gradients of many clients by torch.func.vmap, for any module and objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.execution.training.chunk import Chunk, ChunkMasks
from fl.execution.training.objective import losses_of
from fl.method.local_training import LocalTraining
from fl.method.training_values import StepContext
from fl.models.binding import bind
from fl.tensors.params import NOTHING, Params
from fl.tensors.trees import leaves, replace_leaves


class Vmap:
    """Gradients by vmap over torch.func.grad of the objective; see `chunk.Gradients`."""

    takes_views: ClassVar[bool] = True

    def __init__(self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None):
        self.algorithm, self.module, self.task = algorithm, chunk.module.train(index is not None), chunk.task
        self.frozen = {name: local[name] for name in local if name not in theta}
        bind(chunk.module, NOTHING, chunk.initial)
        self.masks = ChunkMasks(chunk, index)

    def __call__(
        self,
        params: Params,
        batch: Mapping[str, Tensor],
        weights: Tensor,
        masks: list[Tensor],
        at: StepContext,
        grad: Params,
    ) -> Tensor:
        per_client = (at.state, at.facts, at.prepared, at.start if at.start.batch else None)

        def objective(
            tensors: dict[str, Tensor],
            frozen: dict[str, Tensor],
            batch: Mapping[str, Tensor],
            weights: Tensor,
            masks: list[Tensor],
            per_client_leaves: list[Tensor],
        ) -> tuple[Tensor, Tensor]:
            self.masks.layers.set(masks)

            def net(*args: Any, **kwargs: Any) -> Any:
                return torch.func.functional_call(self.module, {**frozen, **tensors}, args, kwargs)

            state, facts, prepared, start = replace_leaves(per_client, per_client_leaves)
            start = at.start if start is None else start
            here = replace(at, state=state, facts=facts, prepared=prepared, start=start)
            losses = losses_of(self.algorithm, net, batch, here, self.task)
            return (losses * weights).sum(), losses.detach()

        gradient = torch.func.vmap(torch.func.grad(objective, has_aux=True))
        frozen = {name: tensor[: weights.shape[0]] for name, tensor in self.frozen.items()}
        grads, losses = gradient({n: params[n] for n in params}, frozen, batch, weights, masks, leaves(per_client))
        self.masks.layers.set([None] * len(masks))  # they are vmap's own tensors, which must not be used outside
        for name, g in grads.items():
            grad[name].copy_(g)
        return losses
