"""A passive party of SplitNN: a bottom perceptron on its own columns, which never leaves it.

    forward:  send h = bottom(x)          backward, local_steps times:  w <- optimiser step along g . dh/dw

The parameters are in the carry during a round and in the client's state from round to round. Sources and equations
are in strategies/splitnn.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl import (
    Adam,
    ClientAlgorithm,
    ClientContext,
    Optimiser,
    Params,
    Reply,
    Tree,
    Update,
    aligned,
    checks,
    perceptron,
    random,
    register,
)


def first_bottom(ctx: ClientContext, sizes: tuple[int, ...], optimiser: Optimiser) -> Tree:
    """Draw a party's model for the columns of its rows; the parameters, the optimiser's memory and no steps yet."""
    columns = int(np.prod(ctx.train.arrays["x"].shape[1:]))
    generator = random.torch_generator(ctx.seed, ctx.client, "bottom")
    model = Params.of(perceptron.first_weights((columns, *sizes), generator))
    return {"model": model, "optimiser": optimiser.state(model), "steps": 0}


@register("client", "splitnn")
@dataclass(frozen=True, kw_only=True)
class SplitNNParty(ClientAlgorithm):
    """Send the cut layer of a batch, then train the bottom model with the gradient that comes back.

    Args:
        hidden: hidden units of the passive parties' bottom models.
        optimiser: rule of their steps; the learning rate is the strategy's.
    """

    hidden: tuple[int, ...] = (100, 100)
    optimiser: Optimiser = Adam(weight_decay=1e-5)

    sends: ClassVar[tuple[str, ...]] = ("cut",)
    receives: ClassVar[tuple[str, ...]] = ("gradient",)

    def __post_init__(self) -> None:
        checks.positive(hidden=self.hidden)
        if not self.optimiser.batched:
            raise ValueError("optimiser: the memory of torch's optimisers cannot be stored; use sgd or adam")

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        own = ctx.state if carry is None else carry
        if own is None:
            own = first_bottom(ctx, (*self.hidden, ctx.config["cut"]), self.optimiser)
        if name == "predict":
            x = aligned.all_rows(ctx)
        else:
            config, count = ctx.config, len(ctx.train)
            x = ctx.train.take(aligned.batch_rows(count, ctx.seed, ctx.round, config["step"], config["batch"]))["x"]
        if name == "backward":
            own = self._trained(own, x, ctx)
            return Reply(Update({}, len(x)), state=own if ctx.config["last"] else None, carry=own)
        with torch.no_grad():
            return Reply(Update({"cut": perceptron.outputs(own["model"], x)}, len(x)))

    def _trained(self, own: Tree, x: Tensor, ctx: ClientContext) -> Tree:
        """Return the party's model after `local_steps` steps along the received gradient."""
        model, steps = own["model"].clone(), own["steps"]
        memory = {name: moments.clone() for name, moments in own["optimiser"].items()}
        for _ in range(ctx.config["local_steps"]):
            weights = {name: tensor.detach().requires_grad_() for name, tensor in model.items()}
            cut = perceptron.outputs(weights, x)
            gradients = torch.autograd.grad(cut, list(weights.values()), ctx.received["gradient"])
            self.optimiser.step(model, Params.of(dict(zip(weights, gradients))), memory, ctx.config["lr"], steps)
            steps += 1
        return {"model": model, "optimiser": memory, "steps": steps}
