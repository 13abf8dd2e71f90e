"""SplitNN: each party maps its columns to a cut layer, and the active party trains a model on all cut layers.

    per batch:  passive p sends h_p = bottom_p(x_p);   the active party computes the loss L of top(h_0 | ... | h_P-1)
                and sends g_p = dL/dh_p;   all parties take a step, the passive ones along g_p . dh_p/dw_p

Vepakomma, Gupta, Swedish, Raskar 2018, arXiv:1812.00564; the models and the setting are those of Wu, Hou, He 2023,
arXiv:2307.02040 (VertiBench): bottoms (100, 100), top (200,), Adam, batch 128, 50 epochs, rate halved every 10.
A round is an epoch. Bytes of a round: (P - 1) n h b up and as many down, for P parties, n training rows, cut width h
and b bytes per number. All parties derive the rows of a batch from the seed, so ids cost nothing.
An epoch that is interrupted is repeated from its start, with the same bits.
Compressed form (C-VFL, Castiglia, Das, Wang, Patterson 2022, arXiv:2206.08330): `codec` compresses cut layers and
gradients, and `local_steps` Q > 1 repeats each step with stale values of the others.
Differs from the papers: weight decay is decoupled from Adam. In C-VFL all parties have the labels and the top model;
here passive parties have neither, and repeat their step along the same g_p (FedBCD, arXiv:1912.11187).
Equals FedAvg: no setting; it is the joint network, trained centrally on the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl import (
    Broadcast,
    EvaluationGenerator,
    Exchange,
    RoundGenerator,
    ServerContext,
    Stack,
    Tree,
    aligned,
    checks,
    register,
)

from .party_model import PartyModel, State, answers, held_out, measured


def own_gradient(client: int, shared: Mapping[str, Tree], state: Tree) -> Tensor:
    """Return the gradient of the loss with respect to the client's cut layer, (B, cut)."""
    return shared["gradients"][client]


@register("strategy", "splitnn")
@dataclass(frozen=True, kw_only=True)
class SplitNN(PartyModel):
    """Split learning on columns, with one exchange forward and one backward per batch.

    Args:
        hidden: hidden units of the active party's bottom model. Those of the passive parties are `client.hidden`.
        cut: outputs of each bottom model, positive; the width of what travels.
        top: hidden units of the top model.
        optimiser: rule of a step of the active party. That of the passive parties is `client.optimiser`.
        lr: learning rate of all parties, at least 0, or a schedule over rounds.
        batch: rows of a step, positive.
        local_steps: steps of each party per exchange, at least 1; all after the first use stale values of the others.
    """

    local_steps: int = 1

    client: ClassVar[str] = "splitnn"
    example_config: ClassVar[Mapping[str, Any]] = {
        "partition": {"name": "vertical", "parties": 3},
        "cohort.size": 2,
        "strategy.batch": 32,
        "strategy.cut": 4,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, local_steps=self.local_steps)

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        state, losses, count = state.copy(), [], len(ctx.server["y"])
        batches = aligned.batches(count, self.batch)
        settings = {"cut": self.cut, "batch": self.batch, "lr": self.rate(ctx), "local_steps": self.local_steps}
        for step in range(batches):
            config = {**settings, "step": step, "last": step == batches - 1}
            cut = yield Exchange(Broadcast(config=config), {"cut": Stack()}, work="forward", pin=True, samples=0)
            rows = torch.from_numpy(aligned.batch_rows(count, ctx.seed, ctx.round, step, self.batch).copy())
            batch = {name: array[rows] for name, array in ctx.server.items()}
            passive = answers(cut.value and cut.value["cut"], ctx)
            state, gradients, loss = self.learn(state, batch, passive, ctx)
            for _ in range(self.local_steps - 1):
                state, _, _ = self.learn(state, batch, passive, ctx)
            losses.append(loss)
            down = Broadcast(
                {"gradients": torch.stack(gradients)},
                rows={"gradient": own_gradient},
                hidden=("gradients",),
                config=config,
            )
            yield Exchange(down, {}, work="backward", pin=True, samples=len(rows) * self.local_steps)
        return state, {"train/loss": torch.stack(losses).mean()}

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        found: dict[str, float] = {}
        for view, prefix, rows in held_out(ctx):
            down = Broadcast(config={"cut": self.cut, "view": view})
            cut = yield Exchange(down, {"cut": Stack()}, work="predict", free=True)
            passive = answers(cut.value and cut.value["cut"], ctx)
            found |= measured(ctx, self.predictions(state, rows["x"], passive), rows, prefix)
            found[f"{prefix}/inference_bytes"] = sum(part.nbytes for part in passive)
        return found
