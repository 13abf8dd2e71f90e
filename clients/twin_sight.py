"""Twin-sight's clients: a supervised and a self-supervised network teach each other by having similar neighbourhoods.

    x: weak view, x': strong view    s(x): outputs, z_s: its features    z_u: features of the twin u, g(z_u): projected

    L_ins = InfoNCE of g(z_u(x)) and g(z_u(x')) with temperature T
    L_sim = 1/B^2 |Z_u Z_u^T - Z_s Z_s^T|_F^2        rows of Z_u, Z_s: features of x divided by their norm
    L_pl  = mean over rows without label of [max p > threshold] cross-entropy(s(x'), argmax p),    p = softmax s(x)

    loss = cross-entropy(s(x), y) of rows with label + mu_ins L_ins + mu_sim L_sim + pseudo L_pl

The gradient of L_sim goes to both networks. The model is s and predicts alone; the added part `twin` has u, which is s
without its last layer, with weights of its own, and the projection g = Linear, ReLU, Linear. A batch has rows with and
without label; each part of the loss that concerns one kind is divided by the size of the batch.
Zhang, Yang, Tian, Wang, Liu, Han 2024, arXiv:2402.14430; batches of 64, SGD with lr .01, momentum .9, weight decay
1e-4.
Differs from the authors' program: L_sim is a mean over B^2 (there it is divided by B xor 2, so its weight 1 is 62 here
for B = 64); weak views give pseudo-labels and strong views learn. Its proximal term is left out.
Loop only: the loss is over the batch.
Equals FedAvg: mu_ins = mu_sim = pseudo = 0 with unlabelled_weight = 0 is FedAvg over the rows with labels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Extended,
    LocalTraining,
    Phase,
    Reply,
    StepContext,
    Task,
    Tree,
    checks,
    last_linear,
    register,
)

TWO_VIEWS: Mapping[str, Literal["weak", "strong"]] = {"x": "weak", "strong": "strong"}


class Twins(Extended):
    """A model with a twin: `twin.encoder`, a copy without the last layer, and `twin.projector`."""

    def forward(self, x: Tensor, network: str = "") -> Any:
        """Return the outputs; for network "s" (outputs, features); for "u" (features, projections) of the twin."""
        if network == "u":
            z = self.added["encoder"](x).flatten(1)
            return z, self.added["projector"](z)
        if network == "s":
            outputs, z = self.with_inputs(self.last, x)
            return outputs, z.flatten(1)
        return self.original(x)


def with_twin(module: nn.Module, hidden: int, width: int, outputs: int | None = None) -> Twins:
    """Return the model with its twin, whose layers are drawn by their `reset_parameters`.

    Args:
        module: the model; its last layer has to be linear.
        hidden: width of the projector's hidden layer.
        width: number of projected features.
        outputs: number of outputs for a sample; None: it is not compared with the layer's.
    """
    name, last = last_linear(module, outputs)
    encoder = copy.deepcopy(module)
    encoder.set_submodule(name, nn.Identity())
    for layer in encoder.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    projector = nn.Sequential(nn.Linear(last.in_features, hidden), nn.ReLU(), nn.Linear(hidden, width))
    return Twins(module, "twin", nn.ModuleDict({"encoder": encoder, "projector": projector}))


def gram_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines within a (B, D) and within b (B, E), a tensor ().

    It lies in [0, 4], and does not change if all rows of a or of b are rotated or scaled.

    >>> gram_distance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0], [3.0]])).item()
    0.5
    """
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return (a @ a.T - b @ b.T).square().mean()


def info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of two views (B, D) each, a tensor (): the mean over all 2B projections of

        -log( e^(cos(v, other view of v) / T) / sum over the other 2B - 1 projections v' of e^(cos(v, v') / T) )

    Chen, Kornblith, Norouzi, Hinton 2020, arXiv:2002.05709.
    """
    views = F.normalize(torch.cat([a, b]), dim=-1)
    count = len(views)
    logits = (views @ views.T / temperature).masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, (torch.arange(count) + len(a)) % count)


@register("client", "twin_sight")
@dataclass(frozen=True, kw_only=True)
class TwinSight(LocalTraining):
    """Supervised and self-supervised training of twin networks.

    Args:
        mu_ins: weight of InfoNCE, at least 0.
        mu_sim: weight of the distance between the Gram matrices, at least 0.
        pseudo: weight of the pseudo-labels, at least 0. The authors' program has 0.
        threshold: least probability of a pseudo-label, in [0, 1].
        temperature: temperature T of InfoNCE, positive.
        hidden: width of the projector's hidden layer, positive.
        projection: number of projected features, positive.
        unlabelled_weight: weight of a row without label in `num_examples`, in [0, 1]; the sum is rounded. A row with
            label has 1.
    """

    mu_ins: float = 0.5
    mu_sim: float = 1.0
    pseudo: float = 0.0
    threshold: float = 0.95
    temperature: float = 0.07
    hidden: int = 4096
    projection: int = 2048
    unlabelled_weight: float = 1.0

    classes_only: ClassVar[bool] = True
    loss_over_batch: ClassVar[bool] = True
    example_config: ClassVar[Mapping[str, Any]] = {
        "labels": {"name": "clients", "labelled": 5},
        "data.strong": ["noise"],
        "client.hidden": 8,
        "client.projection": 4,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(mu_ins=self.mu_ins, mu_sim=self.mu_sim, pseudo=self.pseudo, hint="0 leaves the term out")
        checks.positive(temperature=self.temperature, hidden=self.hidden, projection=self.projection)
        checks.within("[0, 1]", threshold=self.threshold, unlabelled_weight=self.unlabelled_weight)
        if not (self.mu_ins or self.mu_sim or self.pseudo or self.unlabelled_weight):
            logging.getLogger(__name__).warning("all weights are 0: this is fedavg over the rows with labels")

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return with_twin(module, self.hidden, self.projection, outputs)

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        changes = TWO_VIEWS if self.mu_ins or self.pseudo else phase.changes
        return (replace(phase, view="all", changes=changes),)

    def gradients_per_step(self) -> int:
        return 1 + bool(self.mu_ins or self.mu_sim) + bool(self.mu_ins) + bool(self.pseudo)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        reply = super().work(name, ctx, carry)
        weight = len(ctx.train) + int(self.unlabelled_weight * len(ctx.unlabelled) + 0.5)
        return replace(reply, update=replace(reply.update, num_examples=weight))

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        labelled, y = batch["y"] >= 0, batch["y"].clamp(min=0)
        outputs, z_s = net(batch["x"], "s")
        losses = task.loss(outputs, {**batch, "y": y}) * labelled
        if self.mu_ins or self.mu_sim:
            z_u, projected = net(batch["x"], "u")
            if self.mu_sim:
                losses = losses + self.mu_sim * gram_distance(z_u, z_s)
            if self.mu_ins:
                losses = losses + self.mu_ins * info_nce(projected, net(batch["strong"], "u")[1], self.temperature)
        if self.pseudo:
            surest, label = outputs.detach().softmax(-1).max(-1)
            kept = ~labelled & (surest > self.threshold)
            losses = losses + self.pseudo * task.loss(net(batch["strong"]), {"y": label}) * kept
        return losses
