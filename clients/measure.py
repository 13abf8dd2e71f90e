"""What a client measures on its own data: the mean loss of a model, and representations, the outputs of a layer inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fl.data.views import Batch
from fl.method.context import ClientContext
from fl.tensors.params import Params

BLOCK = 1024  # samples per forward pass


def blocks(ctx: ClientContext) -> Iterator[Batch]:
    """The client's training data, in order; at least one, empty without data."""
    for a in range(0, max(len(ctx.train), 1), BLOCK):
        yield ctx.train.take(slice(a, a + BLOCK))


def mean_loss(ctx: ClientContext, params: Params) -> float:
    """The task's mean loss over the client's training data; 0 without data."""
    if not len(ctx.train):
        return 0.0
    net = ctx.net(params)
    with torch.inference_mode():
        total = sum(float(ctx.task.loss(net(batch["x"]), batch).double().sum()) for batch in blocks(ctx))
    return total / len(ctx.train)


@contextmanager
def tapped(module: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """While the context lasts, the representations (B, D) of each forward pass are appended to the list: the output of
    `layer`, or without one what goes into the last layer that has parameters."""
    heard: list[Tensor] = []
    if layer is None:
        last = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None][-1]
        handle = last.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].flatten(1)))
    else:
        known = dict(module.named_modules())
        if layer not in known:
            raise ValueError(f"features: {layer!r} is not a layer of the model; there are {[n for n in known if n]}")
        handle = known[layer].register_forward_hook(lambda _, __, output: heard.append(output.flatten(1)))
    try:
        yield heard
    finally:
        handle.remove()


def representations(ctx: ClientContext, params: Params, layer: str | None) -> Tensor:
    """(n, D): those of the client's training samples under `params`, without noise."""
    net = ctx.net(params)
    with torch.no_grad(), tapped(ctx.module, layer) as heard:
        for batch in blocks(ctx):
            net(batch["x"])
    return torch.cat(heard)
