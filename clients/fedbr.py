"""FedBR's client: local steps that are balanced on pseudo-data, against a projection that looks for differences.

    z = h(x),  z_p = h(x_p),  z_g = h_received(x_p)            h: the inputs of the last layer; x_p: pseudo-data
    a = cos(D z_p, D z_g) / T,    b = cos(D z_p, D z) / T,    con = log(1 + e^(b - a))
    max    D <- D + lr gamma grad_D con                        features fixed
    min    w <- step on  CE(y) + mu con + lam mean_c -log softmax(v(z_p))_c          with the new D

Means over the batch; pseudo-samples are paired with its samples index by index.  D: h -> 2h -> 2h -> h with ReLU, the
part `projection` of the model.  `order: together` takes both gradients from one pass, at the old D; then D moves by the
client's optimiser, along -gamma times its gradient of con.  mu=0 adds no D.
The client also makes the pseudo-data: work "means" returns means of random samples of its own (`strategies/fedbr.py`).
Guo, Tang, Lin 2023, arXiv:2205.13462.
Differs from the paper: the features of the max step and z_g are computed without Dropout; the steps of D have no
momentum.  Loop only: the two orders share work of their own.
Equals FedAvg: mu=0 and lam=0, equal bits in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    Beside,
    ClientContext,
    Descent,
    Extended,
    LocalSteps,
    Params,
    Phase,
    Reply,
    StepContext,
    Task,
    Tree,
    Update,
    checks,
    last_linear,
    register,
)

from .measure import BLOCK
from .personal import Personal

PROJECTION = "projection"  # name of D in the model


class WithProjection(Extended):
    """A model with the projection D of its features.

    Args:
        original: the model; its last layer is a linear one.
        outputs: number of outputs for a sample; None: it is not compared with the layer's.
    """

    def __init__(self, original: nn.Module, outputs: int | None = None):
        h = last_linear(original, outputs)[1].in_features
        layers = (nn.Linear(h, 2 * h), nn.ReLU(), nn.Linear(2 * h, 2 * h), nn.ReLU(), nn.Linear(2 * h, h))
        super().__init__(original, PROJECTION, nn.Sequential(*layers))

    def forward(self, x: Tensor, features: bool = False) -> Any:
        """Return the outputs (B, K), or outputs and features (B, h)."""
        if not features:
            return self.original(x)
        outputs, z = self.with_inputs(self.last, x)
        if z.ndim != 2:
            raise ValueError(f"features: (B, h) are needed, the last layer gets {tuple(z.shape)}; set mu: 0")
        return outputs, z


def contrast(local: Tensor, pseudo: Tensor, received: Tensor, temperature: float) -> Tensor:
    """Return con, (B,), from the projections (B, D) of local data, of pseudo-data, and of these as received.

    >>> e, f = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> [round(float(contrast(local, e, e, 0.5)), 6) for local in (e, f)]  # log 2, log(1 + e^-2)
    [0.693147, 0.126928]
    """
    near, far = (F.cosine_similarity(pseudo, other, -1) for other in (received, local))
    return F.softplus((far - near) / temperature)


def balance(outputs: Tensor) -> Tensor:
    """Return the cross-entropy (B,) of outputs (B, C) with the uniform distribution over classes.

    >>> round(float(balance(torch.zeros(1, 4))), 6)  # log 4
    1.386294
    """
    return -F.log_softmax(outputs, -1).mean(-1)


def means(samples: Tensor, items: int, per_item: int, generator: torch.Generator) -> Tensor:
    """Return means of `per_item` random samples, (items, ...), from (n, ...); (0, ...) if n is less than `per_item`."""
    if len(samples) < per_item:
        return samples[:0]
    drawn = (torch.randperm(len(samples), generator=generator)[:per_item] for _ in range(items))
    return torch.stack([samples[positions].mean(0) for positions in drawn])


@register("client", "fedbr")
@dataclass(frozen=True, kw_only=True)
class FedBR(Personal):
    """Local training with pseudo-data.

    Args:
        mu: weight of the contrastive loss con, at least 0. 0 leaves the projection out.
        lam: weight of the balance on pseudo-data, at least 0. 0 leaves it out.
        gamma: factor of the learning rate of the projection, at least 0.
        temperature: temperature T of con, positive.
        order: `alternate` moves the projection, then the model; `together` moves both along gradients of one pass.
    """

    mu: float = 0.5
    lam: float = 1.0
    gamma: float = 1.0
    temperature: float = 0.5
    order: Literal["alternate", "together"] = "alternate"

    sends: ClassVar[tuple[str, ...]] = ("model", "items")
    optional: ClassVar[tuple[str, ...]] = ("items",)
    classes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(mu=self.mu, lam=self.lam, hint="0 leaves this loss out")
        checks.not_negative(gamma=self.gamma, hint="0 fixes the projection")
        checks.positive(temperature=self.temperature)
        checks.one_of(("alternate", "together"), order=self.order)

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithProjection(module, outputs) if self.mu else module

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        phases = super().phases(round_, rounds)
        if not (self.mu or self.lam):
            return phases
        beside = {"pseudo": Beside("received:pseudo", batch=self.batch, changes={"x": ()})}
        return tuple(replace(phase, beside=beside) for phase in phases)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if name == "means":
            return self.means(ctx)
        if not self.mu or not len(ctx.train):
            return super().work(name, ctx, carry)
        ctx = replace(ctx, received={**ctx.received, "pseudo": self.with_features(ctx)})
        return super().work(name, ctx, carry) if self.order == "together" else self.alternate(ctx)

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name == "means":
            return np.zeros_like(labelled), np.zeros_like(labelled)
        return super().workload_of_views(labelled, unlabelled, round_, rounds, name)

    def means(self, ctx: ClientContext) -> Reply:
        """Return the pseudo-samples that the client is asked for."""
        x, n = ctx.train.take()["x"], len(ctx.train)
        if not x.is_floating_point():
            raise ValueError(f"data: x is {x.dtype}; fedbr averages samples, which needs real numbers. Use items: 0")
        found = means(x, ctx.config["items"], ctx.config["per_item"], ctx.generator("means"))
        return Reply(Update({"items": found}, n))

    def with_features(self, ctx: ClientContext) -> dict[str, Tensor]:
        """Return the pseudo-data with their features under the received model, computed once a round."""
        x, net = ctx.received["pseudo"], ctx.net(ctx.received["model"])
        with torch.no_grad():
            found = [net(x[a : a + BLOCK], features=True)[1] for a in range(0, len(x), BLOCK)]
        return {"x": x, "received": torch.cat(found)}

    def alternate(self, ctx: ClientContext) -> Reply:
        """Train with a step of the projection before each step of the model."""
        steps, received = LocalSteps(self, ctx), ctx.received["model"]
        projection = received.select([f"{PROJECTION}.*"])
        w = received.select([name for name in received if name not in projection])
        descent, net = Descent(steps.phase, w), ctx.module
        for batch in steps:
            pseudo, seen = paired(batch)
            z, z_p = (steps.at.under(w, x, features=True)[1] for x in (batch["x"], pseudo))
            ascent = self.projection_gradient(net.get_submodule(PROJECTION), projection, z, z_p, seen)
            projection = projection + self.gamma * steps.phase.rate(descent.t) * ascent
            descent.step(steps.gradient(w, projection))
        trained = received.replace({**w, **projection})
        return Reply(Update({"model": trained - received}, len(ctx.train), {"loss": steps.loss}))

    def projection_gradient(
        self, layers: nn.Module, projection: Params, local: Tensor, pseudo: Tensor, received: Tensor
    ) -> Params:
        """Return the gradient of the mean of con in the projection's tensors, from features (B, h)."""
        leaves = {name: projection[name].detach().requires_grad_() for name in projection}
        named = {name.removeprefix(f"{PROJECTION}."): leaf for name, leaf in leaves.items()}
        d = [torch.func.functional_call(layers, named, (z,)) for z in (local, pseudo, received)]
        loss = contrast(d[0], d[1], d[2], self.temperature).mean()
        return Params.of(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())))))

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        if not (self.mu or self.lam):
            return task.loss(net(batch["x"]), batch)
        pseudo, received = paired(batch)
        if not self.mu:
            return task.loss(net(batch["x"]), batch) + self.lam * balance(net(pseudo))
        assert isinstance(net, WithProjection)  # trained in the loop
        (outputs, z), (outputs_p, z_p) = net(batch["x"], features=True), net(pseudo, features=True)
        con = contrast(net.added(z), net.added(z_p), net.added(received), self.temperature)
        loss = task.loss(outputs, batch) + self.mu * con
        return loss + self.lam * balance(outputs_p) if self.lam else loss

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        if not self.mu:
            return grad
        ascent = {name: -self.gamma / self.mu * grad[name] for name in grad if name.startswith(f"{PROJECTION}.")}
        return grad.replace(ascent)


def paired(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the pseudo-samples that belong to the samples of a batch, and their received features; cycled.

    Without features (mu=0) the second is the first.
    """
    x, received = batch["pseudo/x"], batch.get("pseudo/received", batch["pseudo/x"])
    positions = torch.arange(len(batch["x"]), device=x.device) % len(x)
    return x[positions], received[positions]
