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
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from fl import (
    ClientContext,
    Fit,
    Params,
    Preparation,
    Reply,
    TrainingInputs,
    TrainingResult,
    Tree,
    checks,
    elementwise,
    head_names,
    match,
    prepare_alone,
    register,
)

from .personal import Personal


def towards(old: Params, change: Params, weights: Params) -> Params:
    """Return old + W change, element by element; `change` is received - old."""
    return elementwise(lambda o, c, w: w * c + o, old, change, weights)


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

    def first_state(self, inputs: TrainingInputs) -> Tree:
        """Return the received model as old model, W = 1, and that the client has not trained yet."""
        received = inputs.received["model"]
        ones = received.select(self.mixed(inputs)).layout.zeros() + 1.0
        return {"personal": received, "weights": ones, "trainings": torch.tensor(0)}

    def mixed(self, inputs: TrainingInputs) -> list[str]:
        """Return the names of the tensors that are mixed."""
        received = inputs.received["model"]
        assert inputs.module is not None
        return head_names(inputs.module, received) if self.layers is None else match(received, self.layers)

    def prepare(self, ctx: ClientContext, inputs: TrainingInputs) -> Tree:
        return prepare_alone(self, ctx, inputs)

    def prepare_together(self, clients: Preparation, inputs: TrainingInputs) -> Tree:
        """Return the starts of local training and W, learnt on the clients' data."""
        received, state, counts = inputs.received["model"], inputs.state, self.num_sampled(clients.sizes)
        start, weights = received.layout.empty(len(counts)).copy_(received), state["weights"]
        if not self.eta:
            return {"start": start, "weights": weights}
        trainings = state["trainings"].numpy()
        epochs = np.choose(np.minimum(trainings, 2), (0, self.first_epochs, 1))
        mixed = received.select(self.mixed(inputs))
        old = state["personal"].select(list(mixed))
        change = elementwise(lambda o, r: r - o, old, mixed)
        how = Fit(
            base=old,
            direction=change,
            start=weights,
            rate=self.eta,
            low=0.0,
            high=1.0,
            epochs=epochs,
            window=self.window,
            threshold=self.threshold,
        )
        weights, _ = clients.fit(how, "ala", counts, received)
        learns = torch.from_numpy((trainings > 0) & (counts > 0))
        mixture = towards(old, change, weights)
        for name in mixture:
            start[name][learns] = mixture[name][learns]
        return {"start": start, "weights": weights}

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.prepared["start"]

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        received, local = end.received["model"], end.params
        return {"model": local - received}, {
            "personal": local,
            "weights": end.prepared["weights"],
            "trainings": end.state["trainings"] + 1,
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
