"""FedALA: a client begins from its own old model, drawn towards the received one by weights that it learns element by element.

    begun = own + W (received - own)  in `layers`, received elsewhere;    W <- clip(W - eta grad f(begun) (received - own), 0, 1)
    local steps from begun;    send local - received;    keep local and W

Zhang, Hua, Wang, Song, Xue, Ma, Guan 2023, arXiv:2212.01197. `layers`: patterns, by default the last linear layer (the authors' program: the
last two tensors). W begins at 1 and is learnt on a share `sample` of the training data (redrawn each time): the first time
until the standard deviation of the last `window` losses is below `threshold`, at most `first_epochs`, later for one epoch. Predicts with begun.
Differs from the paper: the bound `first_epochs`. eta=0: FedAvg. Virtual time counts the learning of W as one epoch over
the share `sample`, from round 1 on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from clients.personal import Personal
from fl.data.views import Batch
from fl.execution.training.steps import LocalSteps
from fl.method.context import ClientContext, Reply
from fl.models.layers import head_names
from fl.registry import register
from fl.tensors import random
from fl.tensors.params import Params, elementwise, match
from fl.tensors.trees import Tree


def towards(own: Params, received: Params, weights: Params) -> Params:
    """own + W (received - own), element by element."""
    return elementwise(lambda o, r, w: o + w * (r - o), own, received, weights)


def learnt(weights: Params, gradient: Params, own: Params, received: Params, eta: float) -> Params:
    """W - eta grad (received - own), kept in [0, 1]."""
    return elementwise(lambda w, g, o, r: (w - eta * g * (r - o)).clamp(0, 1), weights, gradient, own, received)


@register("client", "fedala")
@dataclass(frozen=True, kw_only=True)
class FedALA(Personal):
    """Local training from an element-wise mixture of the client's old model and the received one.

    Args:
        eta: learning rate of the mixture's weights, at least 0. 0 is FedAvg.
        layers: glob patterns of the tensors that are mixed. Default: the last linear layer.
        sample: share of the training data that the weights are learnt on, in (0, 1].
        first_epochs: maximum number of epochs when a client learns its weights for the first time.
        threshold: the first time, learning ends when the standard deviation of the last losses is below this.
        window: number of those last losses, one for each epoch, at least 2.
    """

    eta: float = 1.0
    layers: tuple[str, ...] | None = None
    sample: float = 0.8
    first_epochs: int = 20
    threshold: float = 0.1
    window: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta < 0:
            raise ValueError(f"eta: {self.eta} is negative; 0 is FedAvg")
        if not 0 < self.sample <= 1:
            raise ValueError(f"sample: {self.sample} is not in (0, 1]; 1 learns W on all training data")
        if self.first_epochs < 1 or self.window < 2:
            raise ValueError(
                f"first_epochs: {self.first_epochs} is not positive, or window: {self.window} is not 2 or more"
            )
        if self.eta == 0:
            logging.getLogger(__name__).warning("client: fedala with eta=0 keeps W = 1; this is FedAvg")

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        begun, weights = self.begun(ctx)
        received = ctx.received["model"]
        reply = super().work(name, replace(ctx, received={"model": begun}, state=None), carry)
        change = reply.update.groups["model"]
        local = begun + change
        sent = change if begun is received else local - received
        return Reply(
            replace(reply.update, groups={"model": sent}),
            {"own": local, "weights": weights, "learnt": ctx.state is not None},
        )

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(self.begun(ctx)[0])

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        own = reply.state["own"]
        return replace(ctx, received={**ctx.received, "model": own}, state=None)

    def begun(self, ctx: ClientContext) -> tuple[Params, Params]:
        """(where training begins, W)."""
        received = ctx.received["model"]
        names = head_names(ctx.module, received) if self.layers is None else match(received, self.layers)
        if ctx.state is None or not self.eta or not len(ctx.train):
            ones = received.select(names).layout.zeros() + 1.0
            return received, ones if ctx.state is None else ctx.state["weights"]
        top, own, weights = received.select(names), ctx.state["own"].select(names), ctx.state["weights"]
        whole, losses = replace(ctx, limit=None), []  # a deadline cuts local steps, not this
        for epoch in range(1 if ctx.state["learnt"] else self.first_epochs):
            steps = LocalSteps(self, whole, index=f"ala/{epoch}", batches=self.sampled(ctx, epoch))
            for _ in steps:
                gradient = steps.gradient(received.replace(towards(own, top, weights)))
                weights = learnt(weights, gradient.select(names), own, top, self.eta)
            losses.append(float(steps.batch_loss))
            if len(losses) > self.window and np.std(losses[-self.window :]) < self.threshold:
                break
        return received.replace(towards(own, top, weights)), weights

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        """One epoch over the share `sample`, from round 1 on: nobody has an old model in round 0. The engine does not
        know here how often a client took part: a client that learns for the first time may take up to `first_epochs`,
        and one without an old model learns nothing."""
        if not round_ or not self.eta:
            return np.zeros_like(sizes)
        return np.where(sizes > 0, np.maximum(1, (self.sample * sizes).astype(np.int64)), 0)

    def sampled(self, ctx: ClientContext, epoch: int) -> Iterator[Batch]:
        """Mini-batches of the share of the training data that W is learnt on."""
        n, address = len(ctx.train), (ctx.seed, ctx.client, ctx.participation)
        chosen = random.permutation(n, *address, "ala/sample")[: max(1, int(self.sample * n))]
        order = chosen[random.permutation(len(chosen), *address, "ala/shuffle", epoch)]
        size = len(order) if self.batch == "full" else self.batch
        for a in range(0, len(order), size):
            yield ctx.train.take(order[a : a + size])
