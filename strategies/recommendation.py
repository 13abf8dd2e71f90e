"""Base of the recommendation methods: the server averages the clients' changes of item rows.

    q_i <- q_i + sum_u w_u delta_ui / sum_u w_u          delta_ui = 0 if user u did not train item i (rows="clients")

With rows="trained" the sums run over the users that trained item i, so that a row moves as far as its users moved it.
Dividing by all clients dilutes: of K clients only a few train a row, so the rate of item rows has to be about K times
the user's. Other shared tensors are averaged with the same weights over all clients.

After each evaluation of the model, the popularity baseline is evaluated on the same candidates: items are scored by
their number of training rows. Its metrics begin with `popularity/`; the numbers come by a free exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fl import (
    Broadcast,
    EvaluateModel,
    EvaluationGenerator,
    Exchange,
    Metrics,
    Params,
    Plain,
    Ranking,
    Reduction,
    RowMean,
    ServerContext,
    ServerOptimiser,
    Strategy,
    Sum,
    WeightedMean,
    checks,
    match,
    ranking,
    zeros_like,
)

from .fedavg import State

EXAMPLE: Mapping[str, Any] = {
    "data": {"name": "interactions", "users": 8, "items": 40, "per_user": 12},
    "partition": "natural",
    "splits": {"val": 0.0},
    "task": {"name": "ranking", "candidates": 20},
    "model": {"name": "item_table", "dim": 3},
    "evaluation": {"server": False},
}


@dataclass(frozen=True, kw_only=True)
class Recommendation(Strategy):
    """Average changes of item rows.

    Args:
        rows: clients that the change of an item row is averaged over: all `clients` of the cohort, or those that
            `trained` the row.
        weights: weights of the mean: `uniform`, or `examples` (number of training samples, negatives included).
        server_optimiser: how the server moves along the mean change. `plain` is the paper's.
    """

    rows: Literal["clients", "trained"] = "clients"
    weights: Literal["examples", "uniform"] = "uniform"
    server_optimiser: ServerOptimiser = Plain()

    private: ClassVar[tuple[str, ...]] = ("scorer.*",)  # tensors of the user
    example_config: ClassVar[Mapping[str, Any]] = EXAMPLE

    def __post_init__(self) -> None:
        checks.one_of(("clients", "trained"), rows=self.rows)
        checks.one_of(("examples", "uniform"), weights=self.weights)

    def init(self, model: Params, ctx: ServerContext) -> State:
        """Return the first state, with the shared tensors.

        Raises:
            ValueError: the task is no ranking, or the model has no table of items.
        """
        if not isinstance(ctx.task, Ranking):
            raise ValueError(f"name: recommendation needs task: ranking, and the task is {type(ctx.task).__name__}")
        if ranking.ITEMS not in model:
            raise ValueError(f"name: the model trains no {ranking.ITEMS}; use model: {{name: item_table, dim: 32}}")
        private = set(match(model, self.private))
        shared = model.select([name for name in model if name not in private])
        return State(shared, self.server_optimiser.init(shared))

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        rows: Reduction = RowMean("clients" if self.rows == "clients" else "senders", self.weights)
        return {"items": rows} | ({"model": WeightedMean(self.weights)} if len(state.model) > 1 else {})

    def step(self, state: State, reduced: Mapping[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        mean, rows = zeros_like(state.model), reduced["items"]
        mean[ranking.ITEMS][rows.keys] = rows.values.to(mean[ranking.ITEMS].dtype)
        if "model" in reduced:
            mean = mean.replace(reduced["model"])
        model, optimiser = self.server_optimiser.step(state.model, mean, state.optimiser)
        return State(model, optimiser), {"rows_trained": len(rows.keys)}

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        sent = Broadcast.of(self.broadcast(state, ctx)).with_model(state.model)
        metrics = yield EvaluateModel(sent)
        if not len(ctx.evaluated):
            return metrics
        everyone = np.arange(ctx.population)
        counted = yield Exchange({}, {"counts": Sum()}, work="count", cohort=everyone, free=True)
        shared = {"model": state.model, "popularity": counted.value["counts"]}
        popularity = yield EvaluateModel(Broadcast(shared, config=sent.config), name="popularity")
        return {**metrics, **popularity}
