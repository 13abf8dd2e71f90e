"""A passive party of GAL: each round it fits a model of its columns to the residuals that the active party sends.

    f_t <- argmin |r - f(x)|^2  by steps on the training rows;   send f_t(x) (n, K);   keep all models f_0 ... f_t

Predictions on new rows are sum_t a_t f_t(x) with the scales a_t that the active party has chosen. Source and equations
are in strategies/gal.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fl import (
    Adam,
    ClientAlgorithm,
    ClientContext,
    Optimiser,
    Reply,
    Tree,
    Update,
    View,
    checks,
    fitting,
    perceptron,
    register,
)


@register("client", "gal")
@dataclass(frozen=True, kw_only=True)
class GALParty(ClientAlgorithm):
    """Fit a perceptron to the residuals of all training rows.

    Args:
        hidden: hidden units of each model.
        optimiser: rule of a step.
        lr: learning rate, at least 0.
        batch: rows of a step, positive.
        epochs: passes over the training rows in a round, positive.
    """

    hidden: tuple[int, ...] = (100, 100)
    optimiser: Optimiser = Adam(weight_decay=1e-5)
    lr: float = 1e-3
    batch: int = 128
    epochs: int = 10

    sends: ClassVar[tuple[str, ...]] = ("fit",)
    receives: ClassVar[tuple[str, ...]] = ("residual",)

    def __post_init__(self) -> None:
        for size in self.hidden:
            checks.positive(hidden=size)
        checks.positive(batch=self.batch, epochs=self.epochs)
        checks.not_negative(lr=self.lr)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        return -(-sizes // self.batch) * self.epochs, sizes * self.epochs

    @torch.no_grad()
    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        models = [] if ctx.state is None else list(ctx.state)
        if name == "predict":
            view: View = getattr(ctx, ctx.config["view"])
            x = view.take()["x"]
            terms = zip(ctx.config["scales"], models, strict=True)
            parts = [scale * perceptron.outputs(model, x) for scale, model in terms]
            return Reply(Update({"fit": torch.stack(parts).sum(0)}, len(x)))
        x = ctx.train.take()["x"]
        rule = fitting.Regression(
            hidden=self.hidden, optimiser=self.optimiser, lr=self.lr, batch=self.batch, epochs=self.epochs
        )
        with torch.enable_grad():
            model = rule.fit(x, ctx.received["residual"], ctx.seed, ctx.client, ctx.round, "gal")
        return Reply(Update({"fit": perceptron.outputs(model, x)}, len(x)), state=[*models, model])
