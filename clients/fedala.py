"""FedALA: a client starts from its old model, moved towards the received one by weights that it learns per element.

    start = old + W (received - old)  in `layers`, received elsewhere
    W <- clip(W - eta grad f(start) (received - old), 0, 1)
    local steps from start;    send local - received;    keep local and W

Zhang, Hua, Wang, Song, Xue, Ma, Guan 2023, arXiv:2212.01197.  W starts at 1 and is learnt on a share `sample` of the
training data (drawn for each round): the first time until the standard deviation of the last `window` losses is below
`threshold`, for at most `first_epochs` epochs; later for one epoch.  The client predicts with start.  Virtual time
counts the learning of W as one epoch over the share `sample`, from round 1 on.
Differs from the paper: the bound `first_epochs`; `layers` is the last linear layer (the authors' program: the last two
tensors).
Equals FedAvg: eta=0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from fl import (
    Batch,
    ClientContext,
    LocalSteps,
    Params,
    Reply,
    StepContext,
    TrainingInputs,
    TrainingResult,
    Tree,
    checks,
    elementwise,
    head_names,
    match,
    random,
    register,
)

from .personal import Personal


def towards(old: Params, received: Params, weights: Params) -> Params:
    """Return old + W (received - old), element by element."""
    return elementwise(lambda o, r, w: o + w * (r - o), old, received, weights)


def learnt(weights: Params, gradient: Params, old: Params, received: Params, eta: float) -> Params:
    """Return W - eta grad (received - old), clipped to [0, 1]."""
    return elementwise(lambda w, g, o, r: (w - eta * g * (r - o)).clamp(0, 1), weights, gradient, old, received)


@register("client", "fedala")
@dataclass(frozen=True, kw_only=True)
class FedALA(Personal):
    """Local training from an element-wise mixture of the client's old model and the received one.

    Args:
        eta: learning rate of the mixture's weights, at least 0. 0 is FedAvg.
        layers: glob patterns of the tensors that are mixed. Default: the last linear layer.
        sample: share of the training data that the weights are learnt on, in (0, 1].
        first_epochs: maximum number of epochs when a client learns its weights for the first time, at least 1.
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
        checks.not_negative(eta=self.eta, hint="0 is FedAvg")
        checks.within("(0, 1]", sample=self.sample, hint="1 learns W on all training data")
        checks.positive(first_epochs=self.first_epochs)
        checks.at_least(2, window=self.window)
        if self.eta == 0:
            logging.getLogger(__name__).warning("client: fedala with eta=0 keeps W = 1; this is FedAvg")

    def prepare(self, ctx: ClientContext, inputs: TrainingInputs) -> Tree:
        """Return the start of local training, W, and whether the client has an old model. W is learnt on its data."""
        start, weights = self.start_and_weights(ctx, inputs)
        return {"start": start, "weights": weights, "learnt": torch.tensor(ctx.state is not None)}

    def start_and_weights(self, ctx: ClientContext, inputs: TrainingInputs) -> tuple[Params, Params]:
        """Return the start of local training and W, learnt on the client's data."""
        received = ctx.received["model"]
        names = head_names(ctx.module, received) if self.layers is None else match(received, self.layers)
        if ctx.state is None or not self.eta or not len(ctx.train):
            ones = received.select(names).layout.zeros() + 1.0
            return received, ones if ctx.state is None else ctx.state["weights"]
        top, old, weights = received.select(names), ctx.state["personal"].select(names), ctx.state["weights"]
        at = StepContext(
            **vars(inputs), phase=self.phases(ctx.round, ctx.rounds)[0], start=received, module_facts=ctx.module_facts
        )
        whole, losses = replace(ctx, limit=None), list[float]()  # a deadline cuts local steps, not this
        for epoch in range(1 if ctx.state["learnt"] else self.first_epochs):
            steps = LocalSteps(self, whole, at=at, index=f"ala/{epoch}", batches=self.sampled(ctx, epoch))
            for _ in steps:
                gradient = steps.gradient(towards(old, top, weights), received)
                weights = learnt(weights, gradient, old, top, self.eta)
            losses.append(float(steps.batch_loss))
            if len(losses) > self.window and np.std(losses[-self.window :]) < self.threshold:
                break
        return received.replace(towards(old, top, weights)), weights

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.prepared["start"]

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        received, local = end.received["model"], end.params
        return {"model": local - received}, {
            "personal": local,
            "weights": end.prepared["weights"],
            "learnt": end.prepared["learnt"],
        }

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return replace(ctx, received={**ctx.received, "model": reply.state["personal"]}, state=None)

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        """Return one epoch over the share `sample`, from round 1 on: in round 0 no client has an old model.

        How often a client took part is not known here. A client that learns for the first time may take up to
        `first_epochs` epochs, and one without an old model learns nothing.
        """
        if not round_ or not self.eta:
            return np.zeros_like(sizes)
        return self.phases(round_, rounds)[0].samples_per_epoch(self.num_sampled(sizes))

    def smallest_batches(self, sizes: np.ndarray, round_: int, rounds: int) -> np.ndarray:
        smallest = super().smallest_batches(sizes, round_, rounds)
        if not self.eta:
            return smallest
        return np.minimum(smallest, self.phases(round_, rounds)[0].smallest_batch(self.num_sampled(sizes)))

    def num_sampled(self, sizes: np.ndarray) -> np.ndarray:
        """Return the number of samples that W is learnt on, of clients with `sizes` (C,) training samples, (C,)."""
        return np.where(sizes > 0, np.maximum(1, (self.sample * sizes).astype(np.int64)), 0)

    def sampled(self, ctx: ClientContext, epoch: int) -> Iterator[Batch]:
        """Yield mini-batches of the share of the training data that W is learnt on."""
        n, address = len(ctx.train), (ctx.seed, ctx.client, ctx.participation)
        chosen = random.permutation(n, *address, "ala/sample")[: int(self.num_sampled(np.array(n)))]
        order = chosen[random.permutation(len(chosen), *address, "ala/shuffle", epoch)]
        for part in self.phases(ctx.round, ctx.rounds)[0].batch_slices(len(order)):
            yield ctx.train.take(order[part])
