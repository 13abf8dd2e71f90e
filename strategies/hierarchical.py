"""Hierarchical averaging (HierFAVG): clients, edges that average their own clients, a cloud that averages the edges.

    w_e <- w_e + mean_{k at edge e} delta_k            each round
    w   <- sum_e (n_e / n) w_e,    w_e <- w            every `edge_rounds` rounds

Liu, Zhang, Song, Letaief 2020, arXiv:1905.06641, Algorithm 1; `edge_rounds` is its kappa_2, a client's local steps its kappa_1.
A round is a round of the edges.  n_e are the samples of those who took part at edge e since the cloud last averaged, which with
everybody in every round is in the ratio of the paper's |D_e|; an edge nobody of which took part has no weight.
`edges`: how many, each with a block of clients one after another, or the edge of each client.  The server's model is the
cloud's; clients are asked with their edge's.  A run that ends between two averages makes one more in the end.
The state holds a model for each edge.  Edges send the cloud what their model moved by, the cloud sends its model: both through the
run's codecs, and in the ledger as tier "edge".
Differs from the paper: cohorts are sampled; updates in place of models, and so weighted by `num_examples` of the round.
Neutral: edge_rounds=1 is FedAvg, whatever the edges: to 1e-6; with one edge to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from fl.method.messages import Broadcast
from fl.method.reduction import Meta, Reduction, WeightedMean
from fl.method.requests import Exchange, Transfer
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params


@dataclass(frozen=True)
class State:
    model: Params  # the cloud's
    base: Params  # what the edges last received of it
    moved: tuple[Params | None, ...]  # what each edge's model is more than `base`
    examples: tuple[float, ...]  # that took part since, of each edge


@dataclass(frozen=True)
class EdgeMean(Reduction):
    """edge -> (weighted mean of its clients' values, its weight), for edges of which somebody took part; memory edges x model."""

    edge_of: np.ndarray  # (N,) of each client
    weights: Literal["examples", "uniform"]
    linear: ClassVar[bool] = True

    @property
    def mean(self) -> WeightedMean:
        return WeightedMean(self.weights)

    def lift(self, value: Params, meta: Meta) -> dict[int, Any]:
        return {int(self.edge_of[int(meta.client)]): self.mean.lift(value, meta)}

    def merge(self, a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
        both = {edge: self.mean.merge(a[edge], b[edge]) for edge in a.keys() & b.keys()}
        return {**a, **b, **both}

    def finish(self, acc: dict[int, Any]) -> dict[int, Any]:
        return {edge: (self.mean.finish(acc[edge]), float(acc[edge][1])) for edge in sorted(acc)}


def assigned(edges: int | Sequence[int], population: int) -> np.ndarray:
    """(N,) the edge of each client; a `ValueError` where an edge has none."""
    if isinstance(edges, int):
        if not 1 <= edges <= population:
            raise ValueError(f"edges: {edges} is not in 1..{population}, the number of clients")
        return np.arange(population) * edges // population
    if len(edges) != population:
        raise ValueError(f"edges: a list of {len(edges)} for {population} clients; give the edge of each")
    if sorted(set(edges)) != list(range(len(set(edges)))):
        raise ValueError(f"edges: {sorted(set(edges))} are not 0, 1, 2, ...; every edge has to have a client")
    return np.array(edges, np.int64)


def of_edge(edge_of: np.ndarray, client: int, shared: dict[str, Any]) -> Params:
    """The model of a client's edge; of a client held out of training, who has none, the cloud's."""
    return shared["edges"][edge_of[client]] if client < len(edge_of) else shared["model"]


@register("strategy", "hierarchical", "hierfavg")
@dataclass(frozen=True, kw_only=True)
class Hierarchical(Strategy):
    edges: int | tuple[int, ...] = 2
    edge_rounds: int = 2
    weights: Literal["examples", "uniform"] = "examples"

    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"edge_rounds": 1, "weights": "examples"}, bits=False
    )

    def __post_init__(self):
        if self.edge_rounds < 1:
            raise ValueError(
                f"edge_rounds: {self.edge_rounds} is not at least 1; the cloud averages every so many rounds"
            )

    def averages(self):
        return True

    def init(self, model, ctx):
        count = int(assigned(self.edges, ctx.population).max()) + 1
        return State(model, model, (None,) * count, (0.0,) * count)

    def broadcast(self, state, ctx):
        models = tuple(state.base if moved is None else state.base + moved for moved in state.moved)
        if len(models) == 1:
            return models[0]
        rows = {"model": partial(of_edge, assigned(self.edges, ctx.population))}
        return Broadcast(shared={"edges": models}, rows=rows, hidden=("edges",))

    def round(self, state, ctx):
        reduction = EdgeMean(assigned(self.edges, ctx.population), self.weights)
        outcome = yield Exchange(self.broadcast(state, ctx), reduction)
        moved, examples = list(state.moved), list(state.examples)
        for edge, (mean, weight) in (outcome.value or {}).items():
            moved[edge] = mean if moved[edge] is None else moved[edge] + mean
            examples[edge] += weight
        state = replace(state, moved=tuple(moved), examples=tuple(examples))
        if (ctx.round + 1) % self.edge_rounds == 0:
            state = yield from self.averaged(state)
        return state, {}

    def final(self, state, ctx):
        return (yield from self.averaged(state)), {}

    def averaged(self, state: State):
        """The cloud's average, if anybody took part since the last."""
        reporting = {e: moved for e, moved in enumerate(state.moved) if state.examples[e]}
        if not reporting:
            return state
        arrived, total = (yield Transfer(reporting, "up")), sum(state.examples)
        parts = [state.examples[e] / total * moved for e, moved in arrived.items()]
        model = state.base + sum(parts[1:], parts[0])
        edges = range(len(state.moved))
        received = yield Transfer(dict.fromkeys(edges, model), "down")
        return State(model, received[0], (None,) * len(edges), (0.0,) * len(edges))
