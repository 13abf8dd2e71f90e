"""Measurements of a client on its own data: the mean loss of a model, and outputs and representations of models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fl import Batch, ClientContext, Params, features_of

BLOCK = 1024  # samples per forward pass


def blocks(ctx: ClientContext) -> Iterator[Batch]:
    """Yield the client's training data in order, in blocks; at least one block, which is empty without data."""
    for a in range(0, max(len(ctx.train), 1), BLOCK):
        yield ctx.train.take(slice(a, a + BLOCK))


def mean_loss(ctx: ClientContext, params: Params) -> float:
    """Return the task's mean loss over the client's training data; 0 without data."""
    if not len(ctx.train):
        return 0.0
    net = ctx.net(params)
    with torch.inference_mode():
        total = sum(float(ctx.task.loss(net(batch["x"]), batch).double().sum()) for batch in blocks(ctx))
    return total / len(ctx.train)


def check_graphs(ctx: ClientContext) -> None:
    """Refuse CUDA graphs for methods with reference passes, if training batches are augmented."""
    if ctx.graphs and ctx.random_batches:
        raise ValueError(
            "execution.graphs: the passes of other models over augmented batches cannot be recorded; leave graphs out"
        )


def representations(ctx: ClientContext, params: Params, layer: str | None) -> Tensor:
    """Return the representations (n, D) of the client's training samples under `params`, without dropout."""
    net = ctx.net(params)
    with torch.no_grad(), features_of(ctx.module, layer) as recorded:
        for batch in blocks(ctx):
            net(batch["x"])
    return torch.cat([features.flatten(1) for _, features in recorded])
