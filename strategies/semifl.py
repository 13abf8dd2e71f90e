"""SemiFL: the server has the labels; it trains between the rounds, and clients learn pseudo-labels.

    w <- gradient steps on the server's labelled rows                before the first round and after each aggregation
    w <- w + server optimiser(sum_i p_i (w_i - w))                   (`clients/semifl.py` has the local steps)

p_i counts the pseudo-labels of client i; a client without any sends an update of weight zero.
Diao, Ding, Tarokh 2022, arXiv:2106.01432.  Needs `labels: {name: server, share: ...}`.  The traffic is FedAvg's.
Differs from the paper: BatchNorm statistics are not gathered from all clients; the server's rows are not augmented.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fl import (
    Exchange,
    FedAvgEquivalent,
    LocalTraining,
    Momentum,
    OptimiserState,
    Params,
    RoundGenerator,
    ServerContext,
    ServerOptimiser,
    ServerWork,
    WeightedMean,
    checks,
    register,
    train_on_rows,
)

from .fedavg import FedAvg


@dataclass(frozen=True)
class State:
    """The model, what the server optimiser remembers, and whether the server has trained."""

    model: Params
    optimiser: OptimiserState
    trained: bool = False


@register("strategy", "semifl")
@dataclass(frozen=True, kw_only=True)
class SemiFL(FedAvg):
    """Labels at the server, pseudo-labels at the clients.

    Args:
        server_optimiser: how the server moves along the mean update. Default: momentum .5, as in the paper.
        server_epochs: epochs on the server's rows after each aggregation, positive. Default: 5, without `server_steps`.
        server_steps: steps on the server's rows after each aggregation, positive. Cannot be combined with epochs.
        server_batch: rows in a step of the server, positive.
        server_lr: learning rate of the server's steps, positive.
    """

    server_optimiser: ServerOptimiser = field(default_factory=lambda: Momentum(beta=0.5))
    server_epochs: int | None = None
    server_steps: int | None = None
    server_batch: int = 10
    server_lr: float = 0.03

    client: ClassVar[str] = "semifl"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None
    example_config: ClassVar[dict[str, Any]] = {
        "labels": {"name": "server", "share": 0.25},
        "data.strong": ["noise"],
    }

    def __post_init__(self) -> None:
        checks.positive(server_batch=self.server_batch, server_lr=self.server_lr)
        checks.positive(server_epochs=self.server_epochs, server_steps=self.server_steps)
        if self.server_epochs is not None and self.server_steps is not None:
            raise ValueError(f"server_steps: {self.server_steps} beside server_epochs: {self.server_epochs}; give one")

    def averages(self) -> bool:
        return False

    def init(self, model: Params, ctx: ServerContext) -> Any:
        if not ctx.server:
            raise ValueError("name: semifl trains on labels at the server; set labels: {name: server, share: 0.01}")
        return State(model, self.server_optimiser.init(model))

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        if not len(ctx.cohort):
            return state, {}
        if not state.trained:
            state = replace(state, model=(yield self._training(state.model, ctx)), trained=True)
        outcome = yield Exchange(self.broadcast(state, ctx), WeightedMean(self.weights))
        model, optimiser = state.model, state.optimiser
        if outcome.value is not None:
            model, optimiser = self.server_optimiser.step(model, outcome.value, optimiser, self.lr)
        return State((yield self._training(model, ctx)), optimiser, trained=True), {}

    def _training(self, model: Params, ctx: ServerContext) -> ServerWork:
        epochs = 5 if self.server_epochs is None and self.server_steps is None else self.server_epochs
        trainer = LocalTraining(epochs=epochs, steps=self.server_steps, batch=self.server_batch, lr=self.server_lr)
        about = (ctx.module, model, ctx.frozen, dict(ctx.server), ctx.task, ctx.seed, ctx.round, ctx.rounds)
        return ServerWork(train_on_rows, (trainer, *about))
