"""A private normalising flow on frozen features: how likely is a sample under the client's own data?

    h = f(x) / |f(x)|,  standardised with the mean and the deviation of the client's training rows
    loss = -mean log p(h + noise n) / D,  n ~ N(0, I)        p: the flow (`fl/models/flow.py`)
    score = log p(h)

Phase 2 of ProtoFL, as an adaptation before an evaluation. Nothing is sent, so it costs no bytes:

    evaluation: {stage: adapted, adapt: flow, every: ROUNDS}

f is the received model. As the client of a run it trains flows on a model that nobody trains. Without noise, the
density of a few samples grows without limit. A client with fewer than two training rows has the standard normal density
in place of a trained flow.
Kim, Kwak, Jung, Shin, Kim, Kim 2023, arXiv:2307.12450. The paper has no public code: this is a reconstruction from its
abstract. Summaries of the paper mention a second loss of the flow, a similarity; it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fl import (
    Adam,
    ClientAlgorithm,
    ClientContext,
    Optimiser,
    Params,
    PerceptronFit,
    Reply,
    Task,
    Tree,
    Update,
    checks,
    flow,
    register,
    require_one_class,
    zeros_like,
)

from .measure import blocks


def unit_features(outputs: Tensor) -> Tensor:
    """Return outputs (B, ...) as features of norm 1, (B, D)."""
    return F.normalize(outputs.flatten(1), dim=-1)


@register("client", "flow")
@dataclass(frozen=True, kw_only=True)
class Flow(PerceptronFit, ClientAlgorithm):
    """Train a flow on the features of the client's own rows, and score samples by its log-density.

    Args:
        couplings: affine couplings of the flow, at least 1.
        hidden: hidden units of each coupling's perceptron, positive.
        optimiser: rule of a step.
        lr: learning rate, at least 0.
        batch: rows of a step, positive.
        epochs: passes over the training rows, positive.
        noise: standard deviation of the noise on standardised features in training, at least 0.
    """

    couplings: int = 8
    hidden: tuple[int, ...] = (64,)
    optimiser: Optimiser = Adam()
    batch: int = 32
    epochs: int = 50
    noise: float = 0.1

    example_config: ClassVar[Mapping[str, Any]] = {
        "task": "one_class",
        "task.features": 4,
        "shift": "own_or_other",
        "client.epochs": 2,
        "client.couplings": 2,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, couplings=self.couplings)
        checks.not_negative(noise=self.noise)

    def check_task(self, task: Task) -> None:
        require_one_class(task, "client Flow")

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        received = ctx.received["model"]
        net = ctx.net(received)
        with torch.no_grad():
            features = torch.cat([unit_features(net(batch["x"])) for batch in blocks(ctx)])
        return Reply(Update({"model": zeros_like(received)}, len(ctx.train)), self._fitted(features, ctx))

    def _fitted(self, features: Tensor, ctx: ClientContext) -> dict[str, Any]:
        """Return mean (D,), deviation (D,) and flow of features (n, D)."""
        n, width = features.shape
        draw = ctx.generator("flow")
        weights = Params.of(flow.first_weights(width, self.couplings, self.hidden, draw))
        if n < 2:
            return {"mean": features.new_zeros(width), "deviation": features.new_ones(width), "flow": weights}
        mean, deviation = features.mean(0), features.std(0, correction=0)
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        h = (features - mean) / deviation

        def loss(weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
            noisy = h[rows] + self.noise * torch.randn(len(rows), width, generator=draw)
            return -flow.log_density(weights, noisy).mean() / width

        with torch.enable_grad():
            self.train(weights, n, loss, ctx.seed, ctx.client, ctx.participation, "flow rows")
        return {"mean": mean, "deviation": deviation, "flow": weights}

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        net = ctx.net(ctx.received["model"])
        if ctx.state is None or "flow" not in ctx.state:
            return net
        mean, deviation, weights = (ctx.state[name] for name in ("mean", "deviation", "flow"))
        return lambda x: flow.log_density(weights, (unit_features(net(x)) - mean) / deviation)
