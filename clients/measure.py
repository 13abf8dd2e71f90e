"""Measurements of a client on its own data: the mean loss of a model, and representations inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fl import Batch, ClientContext, Params

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


@contextmanager
def features_of(module: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """Within the context, each forward pass appends its representations (B, D) to the list.

    They are the outputs of `layer`; without a name, the inputs of the last layer that has parameters.
    """
    recorded: list[Tensor] = []
    if layer is None:
        last = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None][-1]
        handle = last.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0].flatten(1)))
    else:
        known = dict(module.named_modules())
        if layer not in known:
            raise ValueError(f"features: {layer!r} is not a layer of the model; it has {[n for n in known if n]}")
        handle = known[layer].register_forward_hook(lambda _, __, output: recorded.append(output.flatten(1)))
    try:
        yield recorded
    finally:
        handle.remove()


def representations(ctx: ClientContext, params: Params, layer: str | None) -> Tensor:
    """Return the representations (n, D) of the client's training samples under `params`, without dropout."""
    net = ctx.net(params)
    with torch.no_grad(), features_of(ctx.module, layer) as recorded:
        for batch in blocks(ctx):
            net(batch["x"])
    return torch.cat(recorded)
