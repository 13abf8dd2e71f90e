"""Federated distillation: clients with different models share mean outputs by class, and no parameters.

    loss = task loss(x, y) + gamma * cross-entropy(softmax(mean outputs of the others for class y), softmax(outputs))

Jeong, Oh, Kim, Park, Bennis, Kim 2018, arXiv:1811.11479.  Sends sums of outputs and counts, so the mean over the others
is (total - own sums) / (total - own counts).  Differs from the paper: the outputs are those after local training.
Equals local training: gamma=0.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl import Broadcast, LocalTraining, Params, Reply, Strategy, Sum


@dataclass(frozen=True)
class State:
    """The (empty) model of the server, the sums (C, C + 1), counts last, and the round that they come from."""

    model: Params
    sums: Tensor
    of: int = -1


@dataclass(frozen=True, kw_only=True)
class Distil(Strategy):
    """Add up the clients' outputs by class.

    Args:
        classes: number of classes C.
    """

    classes: int = 10
    client: ClassVar[str] = "distil.py:Distilled"

    def init(self, model, ctx):
        return State(model, torch.zeros(self.classes, self.classes + 1))

    def broadcast(self, state, ctx):
        return Broadcast(shared={"sums": state.sums}, config={"of": state.of})

    def reduction(self, state, ctx):
        return {"sums": Sum()}

    def step(self, state, reduced, ctx):
        return State(state.model, reduced["sums"].float(), ctx.round), {}


@dataclass(frozen=True, kw_only=True)
class Distilled(LocalTraining):
    """Local training of the client's own model, near the others' outputs.

    Args:
        gamma: weight of the others' outputs, at least 0. 0 is local training.
    """

    gamma: float = 0.1
    sends: ClassVar[tuple[str, ...]] = ("sums",)
    receives: ClassVar[tuple[str, ...]] = ("sums",)
    private_models: ClassVar[bool] = True

    def first_state(self, inputs):
        return {"model": inputs.initial.trained, "sent": torch.zeros_like(inputs.received["sums"]), "round": -1}

    def start(self, inputs):
        return inputs.state["model"]

    def objective(self, net, batch, at, task):
        outputs, others = net(batch["x"]), at.received["sums"]
        if at.state["round"] == at.config["of"]:
            others = others - at.state["sent"]
        counts = others[:, -1]
        teacher = (others[:, :-1] / counts.clamp(min=1)[:, None]).softmax(-1)[batch["y"]]
        distance = -(teacher * outputs.log_softmax(-1)).sum(-1)
        return task.loss(outputs, batch) + self.gamma * (counts > 0)[batch["y"]] * distance

    def finish(self, end):
        return {}, end.params

    def work(self, name, ctx, carry):
        reply, batch = super().work(name, ctx, carry), ctx.train.take()
        with torch.no_grad():
            outputs = ctx.net(reply.state)(batch["x"])
        rows = torch.cat([outputs, torch.ones(len(outputs), 1)], 1)
        sums = torch.zeros_like(ctx.received["sums"]).index_add_(0, batch["y"], rows)
        state = {"model": reply.state, "sent": sums, "round": ctx.round}
        return Reply(replace(reply.update, groups={"sums": sums}), state)

    def context_after_training(self, ctx, reply):
        return replace(ctx, state=reply.state)
