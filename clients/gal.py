"""A passive party of GAL: each round it fits a model of its columns to the residuals that the active party sends.

    f_t <- argmin |r - f(x)|^2  by steps on the training rows;   send f_t(x) (n, K);   keep all models f_0 ... f_t

Predictions on new rows are sum_t a_t f_t(x) with the scales a_t that the active party has chosen. Source and equations
are in strategies/gal.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fl import (
    ClientContext,
    Reply,
    Tree,
    Update,
    aligned,
    perceptron,
    register,
)

from .party import FittingParty


@register("client", "gal")
@dataclass(frozen=True, kw_only=True)
class GALParty(FittingParty):
    """Fit a perceptron to the residuals of all training rows, in each round."""

    sends: ClassVar[tuple[str, ...]] = ("fit",)
    receives: ClassVar[tuple[str, ...]] = ("residual",)

    @torch.no_grad()
    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        models = [] if ctx.state is None else list(ctx.state)
        if name == "predict":
            x = aligned.all_rows(ctx)
            terms = zip(ctx.config["scales"], models, strict=True)
            parts = [scale * perceptron.outputs(model, x) for scale, model in terms]
            return Reply(Update({"fit": torch.stack(parts).sum(0)}, len(x)))
        x = ctx.train.take()["x"]
        model = self.fit(x, ctx.received["residual"], ctx.seed, ctx.client, ctx.round, "gal")
        return Reply(Update({"fit": perceptron.outputs(model, x)}, len(x)), state=[*models, model])
