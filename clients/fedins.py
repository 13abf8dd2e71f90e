"""FedIns's client: a frozen network with a pool of adapters. Each sample uses the k nearest ones.

    q = h(x) of the frozen network,    s_j = cos(q, key_j),    J = the k entries with the largest s_j (ties: first)
    a <- a * mean_J scale_j + mean_J shift_j        after each linear, convolution and normalisation layer of the body
    outputs = mean_J (W_j f + b_j),    f: the adapted features
    loss = (1 - c) task's loss + c (1 - sum_J s_j),    c = key_weight

The part `adapters` of the model has keys (P, h), scale and shift (P, a / 2), weight (P, C, h) and bias (P, C); the
other tensors are frozen.  Scales are drawn from N(1, .02), shifts from N(0, .02), keys from N(0, 1).  Each W_j, b_j
starts as the model's own last layer, so the first outputs are nearly those of the pre-trained model (`model.init`).
Feng, Yu, Liu, Xu, Khan, Zuo 2023, arXiv:2308.06051.
Differs from the paper: the heads start from the pre-trained one; convolutions are scaled by channel.  Differs from the
authors' program: entries are chosen for each sample, not averaged over a batch; the query passes once.
Loop only: the shares of the entries are counted after training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Extended,
    LocalTraining,
    Reply,
    StepContext,
    Task,
    Tree,
    checks,
    last_linear,
    register,
)

from .measure import blocks

DEVIATION = 0.02  # of the initial scales and shifts
ALONG_LAST = (nn.Linear, nn.LayerNorm)  # layers whose features are the last axis of their outputs
ALONG_FIRST = (nn.modules.conv._ConvNd, nn.GroupNorm)  # layers whose features are the axis after the batch's


def widths(module: nn.Module, head: str) -> dict[str, int]:
    """Return the adapted layers: name -> number of features of the outputs. `head` is left out.

    >>> widths(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2)), "4")
    {'0': 4, '2': 3}
    """
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"the layer {name!r} normalises over the batch; take a model with group normalisation")
        inside_attention = isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)  # never called itself
        if name == head or inside_attention or not isinstance(layer, (*ALONG_LAST, *ALONG_FIRST)):
            continue
        first = next(layer.parameters(recurse=False), None)
        if first is not None:
            found[name] = first.shape[-1] if isinstance(layer, nn.LayerNorm) else first.shape[0]
    if not found:
        raise ValueError("the model has no linear, convolution or normalisation layer before its last layer")
    return found


def nearest(similarities: Tensor, count: int) -> Tensor:
    """Return the positions (B, count) of the largest of similarities (B, P); of equal ones, the first.

    >>> nearest(torch.tensor([[0.5, 0.9, 0.5], [0.1, 0.1, 0.1]]), 2).tolist()
    [[1, 0], [0, 1]]
    """
    return similarities.argsort(dim=-1, descending=True, stable=True)[:, :count]


def adapted(scale: Tensor, shift: Tensor, layer: nn.Module, *inputs: Any, **named: Any) -> Tensor:
    """Return the layer's outputs a, scaled and shifted by sample and feature: a * scale + shift, (B, d) each."""
    outputs = layer(*inputs, **named)
    between = (1,) * (outputs.ndim - 2)
    shape = (len(scale), -1, *between) if isinstance(layer, ALONG_FIRST) else (len(scale), *between, -1)
    if len(outputs) != len(scale):
        raise ValueError(
            f"a layer returns {tuple(outputs.shape)} for {len(scale)} samples; the first axis must be theirs"
        )
    return outputs * scale.view(shape) + shift.view(shape)


class Pool(nn.Module):
    """Keys, scales, shifts and heads of P entries."""

    def __init__(self, entries: int, width: int, head: nn.Linear):
        super().__init__()
        self.keys = nn.Parameter(torch.randn(entries, head.in_features))
        self.scale = nn.Parameter(1 + DEVIATION * torch.randn(entries, width))
        self.shift = nn.Parameter(DEVIATION * torch.randn(entries, width))
        bias = torch.zeros(head.out_features) if head.bias is None else head.bias.detach()
        self.weight = nn.Parameter(head.weight.detach().repeat(entries, 1, 1))
        self.bias = nn.Parameter(bias.repeat(entries, 1))

    def outputs(self, features: Tensor, shares: Tensor) -> Tensor:
        """Return the means (B, C) of the heads' outputs for features (B, h), weighted by shares (B, P)."""
        entries, classes = self.bias.shape
        each = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten()).view(-1, entries, classes)
        return (shares[:, :, None] * each).sum(1)


class WithPool(Extended):
    """A frozen network with a pool of adapters.

    Args:
        original: the network; its last layer is a linear one.
        entries: number of entries P.
        chosen: number of entries k that each sample uses.
        outputs: number of outputs for a sample; None: it is not compared with the last layer's.
    """

    def __init__(self, original: nn.Module, entries: int, chosen: int, outputs: int | None = None):
        name, head = last_linear(original, outputs)
        found = widths(original, name)
        super().__init__(original, "adapters", Pool(entries, sum(found.values()), head))
        self.widths, self.chosen = found, chosen
        for tensor, parameter in self.named_parameters():
            parameter.requires_grad_(tensor.startswith("adapters."))

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarities (B, k) with the chosen keys, and the positions (B, k) of the chosen entries."""
        with torch.no_grad():
            _, query = self.with_inputs(self.last, x)
        if query.ndim != 2:
            raise ValueError(f"one query for each sample is needed, the last layer gets {tuple(query.shape)}")
        similarities = F.cosine_similarity(query[:, None], self.added.keys[None], -1)
        chosen = nearest(similarities, self.chosen)
        return similarities.gather(1, chosen), chosen

    def forward(self, x: Tensor, similarities: bool = False) -> Any:
        """Return the outputs (B, C), or outputs and similarities (B, k) with the chosen keys."""
        near, chosen = self.choice(x)
        pool = self.added
        shares = near.new_zeros(len(near), len(pool.keys)).scatter(1, chosen, 1 / self.chosen)  # 1 / k for members of J
        scale, shift = shares @ pool.scale, shares @ pool.shift
        ends = list(accumulate(self.widths.values()))
        instead: dict[str, Callable[..., Any]] = {
            name: partial(adapted, scale[:, end - width : end], shift[:, end - width : end])
            for (name, width), end in zip(self.widths.items(), ends)
        }
        instead[self.last] = lambda head, features: pool.outputs(features, shares)
        outputs = self.with_layers(instead, x)
        return (outputs, near) if similarities else outputs


@register("client", "fedins")
@dataclass(frozen=True, kw_only=True)
class FedIns(LocalTraining):
    """Local training of a pool of adapters.

    Args:
        entries: number of adapters in the pool, at least 1. The paper takes 25.
        chosen: number of adapters that each sample uses, from 1 to `entries`. The paper takes 3.
        key_weight: weight c of the loss that pulls chosen keys to their samples, in [0, 1]. The paper takes 0.1.
    """

    entries: int = 25
    chosen: int = 3
    key_weight: float = 0.1

    example_config: ClassVar[dict[str, Any]] = {"client.entries": 4, "client.chosen": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, entries=self.entries, chosen=self.chosen)
        checks.within("[0, 1]", key_weight=self.key_weight)
        if self.chosen > self.entries:
            raise ValueError(
                f"chosen: {self.chosen} is more than the {self.entries} entries; lower it, or raise entries"
            )

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithPool(module, self.entries, self.chosen, outputs)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        outputs, near = net(batch["x"], similarities=True)
        return (1 - self.key_weight) * task.loss(outputs, batch) + self.key_weight * (1 - near.sum(1))

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        reply = super().work(name, ctx, carry)
        metrics = {**reply.update.metrics, **self.shares(ctx)}
        return replace(reply, update=replace(reply.update, metrics=metrics))

    def shares(self, ctx: ClientContext) -> dict[str, float]:
        """Return the share of the client's training samples that choose each entry of the received pool."""
        net, counts = ctx.net(ctx.received["model"]), torch.zeros(self.entries, dtype=torch.int64)
        assert isinstance(net, WithPool)
        if len(ctx.train):
            with torch.no_grad():
                for batch in blocks(ctx):
                    counts += net.choice(batch["x"])[1].flatten().bincount(minlength=self.entries).cpu()
        return {f"entry{j}": int(count) / max(len(ctx.train), 1) for j, count in enumerate(counts)}
