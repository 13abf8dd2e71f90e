"""Federated Reconstruction of matrix factorisation: user vectors are rebuilt in each round and never kept.

    halve the samples at random: support, query
    p_u <- support steps from p_u = 0 on the support half,  Q fixed
    Q_u <- query steps from Q on the query half,  p_u fixed;    send Q_u - Q

Singhal, Sidahmed, Garrett, Wu, Rush, Prakash 2021, arXiv:2102.03448.  A client that predicts rebuilds p_u on all its
training samples. No state.
Differs from the paper: logistic loss on positives and drawn negatives; the halves are drawn again in each round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fl import (
    ClientContext,
    Descent,
    LocalSteps,
    Params,
    Phase,
    Reply,
    TrainingInputs,
    Update,
    View,
    checks,
    join,
    random,
    ranking,
    register,
    zeros_like,
)

from .fedmf import FedMF


@register("client", "fed_reconstruction")
@dataclass(frozen=True, kw_only=True)
class FedReconstruction(FedMF):
    """Matrix factorisation whose user vectors are rebuilt and never kept.

    Args:
        support_epochs: passes over the support half, to rebuild the user's vector; positive.
        support_lr: learning rate of these steps, positive.
        epochs: passes over the query half, to train item rows; positive.
        lr: learning rate of item rows, at least 0.
    """

    support_epochs: int = 5
    support_lr: float = 0.5

    example_config: ClassVar[Mapping[str, Any]] = {"client.negatives": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(support_epochs=self.support_epochs, support_lr=self.support_lr)
        if self.steps is not None:
            raise ValueError("steps: fed_reconstruction counts epochs of both halves; set epochs and support_epochs")
        if self.weight_decay and self.decay == "as_published":
            raise ValueError("decay: as_published is for methods with a state; use batch")

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        support = replace(phase, lr=self.support_lr, decay=None, epochs=self.support_epochs, trains=("scorer.*",))
        return support, replace(phase, trains=(ranking.ITEMS,))

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and samples of both halves."""
        if name == "count":
            return np.zeros_like(labelled), np.zeros_like(labelled)
        total = labelled * (1 + self.negatives)
        halves = total - total // 2, total // 2
        parts = [(phase, n) for phase, n in zip(self.phases(round_, rounds), halves)]
        steps, samples = (sum(getattr(phase, f)(n) for phase, n in parts) for f in ("num_steps", "num_samples"))
        return steps, samples + self.extra_samples(labelled, round_, rounds, name)

    def start(self, inputs: TrainingInputs) -> Params:
        received = inputs.received["model"]
        own = inputs.initial.trained.select([name for name in inputs.initial.trained if name not in received])
        return join(received, zeros_like(own))

    def train(self, ctx: ClientContext, samples: View) -> Reply:
        support, query = halves(samples, ctx)
        params, loss, count = self.start(self.inputs(ctx)), 0.0, 0
        left = ctx.limit
        for index, half in enumerate((support, query)):
            steps = self.descend(ctx, half, params, index, left)
            left = None if left is None else left - steps.taken
            loss, count = loss + float(steps.loss_sum), count + steps.samples
        shared = ctx.received["model"]
        change = params.select(list(shared)) - shared
        return Reply(Update({"model": change}, len(samples), {"loss": loss / max(count, 1)}))

    def descend(self, ctx: ClientContext, samples: View, params: Params, index: int, limit: int | None) -> LocalSteps:
        """Take the steps of phase `index` on the samples, in place on `params`."""
        phase = self.phases(ctx.round, ctx.rounds)[index]
        steps = LocalSteps(self, replace(ctx, train=samples), phase=phase, index=index, limit=limit)
        part = params.select(phase.trains)
        descent = Descent(phase, part)
        steps.bind(part, params)
        gradient = zeros_like(part)
        for _ in steps:
            for name, value in zip(steps.names, steps.bound_gradient()):
                gradient[name].copy_(value)
            descent.step(self.gradient(gradient, part, steps.at))
        params.copy_(part, names=part)
        return steps

    def scores(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        ctx = replace(ctx, participation=0, limit=None)  # the same draws in all evaluations
        params = self.start(self.inputs(ctx)).clone()
        self.descend(ctx, self.samples_of(ctx, "reconstruction"), params, 0, None)
        return ctx.net(params)


def halves(samples: View, ctx: ClientContext) -> tuple[View, View]:
    """Return a random half of the samples, and the other half. With an odd number the first one is larger."""
    n = len(samples)
    order = random.permutation(n, ctx.seed, ctx.client, ctx.participation, "halves")
    first = np.sort(order[: n - n // 2])
    second = np.sort(order[n - n // 2 :])
    return View(samples.arrays, samples.rows[first]), View(samples.arrays, samples.rows[second])
