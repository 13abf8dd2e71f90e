"""GPFL: one body for generic and personal features, told apart by a conditional valve.    per mini-batch of B samples

    out(f, c) = ReLU((scale(c) + 1) f + shift(c))             scale, shift: linear layer, ReLU, LayerNorm; all h -> h
    G: class embeddings (C, h), G^: those received, constant;  g = mean_c G^_c,  p_i = sum_c (n_ic / n_i) G^_c
    loss = mean CE(psi_i(out(f, p_i)), y) + angle mean CE(cos(out(f, g), G), y) + lam |out(f, g) - G^_y|,    f = phi(x)
    (phi, psi_i, G, valve) <- local steps, G and the valve with weight decay mu;    send all but psi_i, keep psi_i

The last norm is over the whole batch (B, h), so it grows with sqrt(B): the loss is one of the batch, and clients train
one at a time. psi_i is the model's last linear layer; G and the valve are the part `gpfl`.  The client `gpfl_sample`
has the mean of the samples' norms instead, which is not the paper's, and trains many clients together by vmap.
predict: psi_i(out(phi(x), p_i)) with the received G; the server, and a client without training rows, use g in place of
p_i.  The training loss in the metrics is the sum of the three terms.  Zhang et al. 2023, arXiv:2308.10279.
Differs from the authors' program: g and p_i are made from the received embeddings in each round (there from the
client's own of the round before, and zeros in round 0); training rows are shuffled; class shares are those of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Extended,
    Params,
    StepContext,
    Task,
    Tree,
    View,
    checks,
    class_counts,
    classifier,
    register,
)

from .partial import Partial

PART, EMBEDDINGS = "gpfl.", "gpfl.embeddings"


class Valve(nn.Module):
    """Class embeddings (C, h), drawn from N(0, 1), and a valve that changes features (B, h) by a condition (h,).

    Args:
        features: width h of the features.
        classes: number C of classes.
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(classes, features))
        self.scale, self.shift = (
            nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.LayerNorm(features)) for _ in range(2)
        )

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Return ReLU((scale(c) + 1) f + shift(c)), (B, h)."""
        return F.relu((self.scale(condition) + 1) * features + self.shift(condition))


class WithValve(Extended):
    """A model with a `Valve` before its last linear layer.

    Args:
        original: the model.
        classes: number C of classes.
    """

    def __init__(self, original: nn.Module, classes: int):
        name, layer = classifier(original, classes)
        super().__init__(original, "gpfl", Valve(layer.in_features, classes))
        self.own_head = name

    def forward(self, x: Tensor, personal: Tensor | None = None, generic: Tensor | None = None) -> Any:
        """Return the scores under the condition `personal`; by default the mean embedding.

        With the condition `generic` return (the scores, the features under it (B, h), their cosines with the
        embeddings (B, C)).
        """
        valve, features = self.added, []
        condition = valve.embeddings.mean(0) if personal is None else personal

        def behind_valve(layer: nn.Module, f: Tensor) -> Tensor:
            features.append(f)
            scores: Tensor = layer(valve(f, condition))
            return scores

        scores = self.with_layer(self.own_head, behind_valve, x)
        if generic is None:
            return scores
        common = valve(features[0], generic)
        return scores, common, F.normalize(common, dim=-1) @ F.normalize(valve.embeddings, dim=-1).T


@dataclass(frozen=True, kw_only=True)
class GPFLBase(Partial):
    """Local training of GPFL, up to the distance to the embeddings.

    Args:
        lam: weight of the distance to the received embeddings, at least 0. .01 is the authors' value for small models
            (.0001 for a ResNet-18).
        mu: weight decay of embeddings and valve, at least 0. .1 is the authors' value for small models (0 for a
            ResNet-18).
        angle: weight of the classification by cosines with the embeddings, at least 0. 1 is the paper's.
    """

    lam: float = 0.01
    mu: float = 0.1
    angle: float = 1.0

    classes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(lam=self.lam, mu=self.mu, angle=self.angle)

    def distance(self, difference: Tensor) -> Tensor:
        """Return the distance of each sample (B,) or of the batch (), from the differences (B, h)."""
        raise NotImplementedError

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithValve(module, outputs)

    def facts(self, view: View, task: Task, outputs: int) -> Tree:
        counts = class_counts(view, outputs)
        return counts / counts.sum().clamp(min=1)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        personal, generic = conditions(at.received["model"], at.facts)
        scores, common, cosines = net(batch["x"], personal, generic)
        losses = task.loss(scores, batch) + self.angle * task.loss(cosines, batch)
        return losses + self.lam * self.distance(common - at.received["model"][EMBEDDINGS][batch["y"]])

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        names = [name for name in params if name.startswith(PART)]
        return grad.added(self.mu * params.select(names)) if self.mu and names else grad

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        inputs = self.inputs(ctx)
        net = ctx.net(self.start(inputs))
        if not len(ctx.train):
            return net
        personal, _ = conditions(ctx.received["model"], inputs.facts)
        return lambda x: net(x, personal)


def conditions(received: Params, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p_i, g), (h,) each: the received embeddings' means, weighted by class shares (C,) and not weighted."""
    embeddings = received[EMBEDDINGS]
    return shares @ embeddings, embeddings.mean(0)


@register("client", "gpfl")
@dataclass(frozen=True, kw_only=True)
class GPFL(GPFLBase):
    """Local training with a conditional valve; the distance to the embeddings is that of the whole batch."""

    loss_over_batch: ClassVar[bool] = True

    def distance(self, difference: Tensor) -> Tensor:
        return difference.norm()


@register("client", "gpfl_sample")
@dataclass(frozen=True, kw_only=True)
class GPFLSample(GPFLBase):
    """GPFL with the mean of the samples' distances to the embeddings, which is not the paper's; it trains by vmap."""

    example_config: ClassVar[dict[str, str]] = {"strategy.name": "gpfl"}

    def distance(self, difference: Tensor) -> Tensor:
        return difference.norm(dim=-1)
