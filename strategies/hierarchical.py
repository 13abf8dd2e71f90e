"""Hierarchical averaging (HierFAVG): clients, edges that average their own clients, a cloud that averages the edges.

    w_e <- w_e + mean_{k at edge e} delta_k            each round
    w   <- sum_e (n_e / n) w_e,    w_e <- w            every `edge_rounds` rounds

Liu, Zhang, Song, Letaief 2020, arXiv:1905.06641, Algorithm 1; `edge_rounds` is its kappa_2, a client's local steps
its kappa_1.  A round is a round of the edges.  n_e counts the samples of the clients of edge e that took part since
the cloud's last average. If all clients take part in every round, n_e is proportional to the paper's |D_e|. The run's
model is the cloud's; clients are evaluated with their edge's model.  A run that ends between two averages makes one
more at the end.  Edges send the change of their model to the cloud and receive the cloud's model: both through the
run's codecs, and in the ledger as tier "edge".
Differs from the paper: cohorts are sampled; updates are averaged in place of models, weighted by `num_examples`.
Equals FedAvg: edge_rounds=1 with any edges, to 1e-6; with one edge equal bits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from fl import (
    Broadcast,
    ByClient,
    Exchange,
    FedAvgEquivalent,
    Grouped,
    Params,
    RoundGenerator,
    ServerContext,
    Strategy,
    Transfer,
    Tree,
    WeightedMean,
    checks,
    register,
    weighted_sum,
)


@dataclass(frozen=True)
class State:
    """The cloud's model and what the edges added to it since its last average.

    Args:
        model: the cloud's model.
        base: the model that the edges received last.
        moved: for each edge its model minus `base`; None if nothing has moved.
        examples: for each edge the samples of the clients that took part since the last average.
    """

    model: Params
    base: Params
    moved: tuple[Params | None, ...]
    examples: tuple[float, ...]


def edge_of_clients(edges: int | Sequence[int], population: int) -> np.ndarray:
    """Return the edge of each client, (N,); a `ValueError` if an edge has no client.

    >>> edge_of_clients(2, 5).tolist()
    [0, 0, 0, 1, 1]
    """
    if isinstance(edges, int):
        if not 1 <= edges <= population:
            raise ValueError(f"edges: {edges} is not in 1..{population}, the number of clients")
        return np.arange(population) * edges // population
    if len(edges) != population:
        raise ValueError(f"edges: a list of {len(edges)} for {population} clients; give the edge of each")
    if sorted(set(edges)) != list(range(len(set(edges)))):
        raise ValueError(f"edges: {sorted(set(edges))} are not 0, 1, 2, ...; every edge needs a client")
    return np.array(edges, np.int64)


def model_of_edge(edge_of: np.ndarray, client: int, shared: Mapping[str, Any], state: Tree) -> Params:
    """Return the model of a client's edge. A client held out of training has no edge and gets the cloud's model."""
    return shared["edges"][edge_of[client]] if client < len(edge_of) else shared["model"]


@register("strategy", "hierarchical", "hierfavg")
@dataclass(frozen=True, kw_only=True)
class Hierarchical(Strategy):
    """Average at edges in each round and in the cloud every few rounds.

    Args:
        edges: number of edges, each with a block of consecutive clients; or a list, the edge of each client.
        edge_rounds: rounds of the edges between two averages of the cloud, at least 1. 1 is FedAvg.
        weights: weights of the mean at an edge: `examples` (number of training samples) or `uniform`.
    """

    edges: int | tuple[int, ...] = 2
    edge_rounds: int = 2
    weights: Literal["examples", "uniform"] = "examples"

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"edge_rounds": 1, "weights": "examples"}, bits=False
    )

    def __post_init__(self) -> None:
        checks.at_least(1, edge_rounds=self.edge_rounds, hint="the cloud averages every edge_rounds rounds")

    def averages(self) -> bool:
        return True

    def init(self, model: Params, ctx: ServerContext) -> State:
        count = int(edge_of_clients(self.edges, ctx.population).max()) + 1
        return State(model, model, (None,) * count, (0.0,) * count)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast | Params:
        models = tuple(state.base if moved is None else state.base + moved for moved in state.moved)
        if len(models) == 1:
            return models[0]
        rows = {"model": partial(model_of_edge, edge_of_clients(self.edges, ctx.population))}
        return Broadcast(shared={"edges": models}, rows=rows, hidden=("edges",))

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        by_edge = ByClient(edge_of_clients(self.edges, ctx.population))
        outcome = yield Exchange(self.broadcast(state, ctx), Grouped(by_edge, WeightedMean(self.weights)))
        moved, examples = list(state.moved), list(state.examples)
        for edge, (mean, weight) in (outcome.value or {}).items():
            before = moved[edge]
            moved[edge] = mean if before is None else before + mean
            examples[edge] += weight
        state = replace(state, moved=tuple(moved), examples=tuple(examples))
        if (ctx.round + 1) % self.edge_rounds == 0:
            state = yield from self.cloud_average(state)
        return state, {}

    def final(self, state: State, ctx: ServerContext) -> RoundGenerator:
        return (yield from self.cloud_average(state)), {}

    def cloud_average(self, state: State) -> Generator[Transfer, Any, State]:
        """Average the edges in the cloud, if a client took part since the last average."""
        reporting = {edge: moved for edge, moved in enumerate(state.moved) if state.examples[edge]}
        if not reporting:
            return state
        arrived, total = (yield Transfer(reporting, "up")), sum(state.examples)
        model = state.base + weighted_sum((state.examples[edge] / total, moved) for edge, moved in arrived.items())
        edges = range(len(state.moved))
        received = yield Transfer(dict.fromkeys(edges, model), "down")
        return State(model, received[0], (None,) * len(edges), (0.0,) * len(edges))
