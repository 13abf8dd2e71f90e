"""Gossip (D-PSGD): no server; each client averages its model with its neighbours' in a graph, and trains it.

    x_i <- sum_j W_ij x_j  +  local training          W: Metropolis weights of the graph, see `strategies/graphs.py`

Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, arXiv:1705.09056, Algorithm 1 with the client's order=together; see
`clients/gossip.py`. A client keeps its own model in its state.  The simulator also holds the model that each client
sent last (clients x model), to deliver it to the neighbours; the mean of these models is evaluated as the server's
model. In a round each client receives a model from each neighbour and sends one to each: the ledger has both ends of
every directed edge.  A codec acts on the way up and again on the way down; fp16, bf16 and top_k change nothing the
second time. If only some clients are in the cohort, neighbours that are both in it average, and the rest of a row of
W goes to the client's own model, so W stays doubly stochastic.  A client without a neighbour in the cohort trains
alone and sends nothing; its neighbours use the model that it sent last.
Differs from the paper: by default clients train the average, not their own model; local training may be many steps;
virtual time waits for all clients, not only for neighbours.
Equals FedAvg: the complete graph, all clients in each round and order=mix_train: FedAvg with uniform weights, to 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl import Broadcast, FedAvgEquivalent, Metrics, Params, Reduction, ServerContext, Stack, Strategy, Tree, register

from .graphs import directed, edges_of, metropolis


@dataclass(frozen=True)
class State:
    """The model that each client sent last, (N, ...)."""

    models: Params


@dataclass(frozen=True)
class Links:
    """The neighbours of each client and their weights, as `directed` returns them."""

    begins: np.ndarray
    others: np.ndarray
    weights: np.ndarray

    def _of(self, client: int) -> slice:
        """Return the client's part of the arrays; it is empty for ids that are not in the graph."""
        return slice(self.begins[client], self.begins[client + 1]) if 0 <= client < len(self.begins) - 1 else slice(0)

    def models(self, client: int, shared: Mapping[str, Any], state: Tree) -> tuple[Params, ...]:
        """Return the models of the client's neighbours."""
        return tuple(shared["models"].row(int(other)) for other in self.others[self._of(client)])

    def config(self, client: int) -> dict[str, Any]:
        """Return the weights of the client's neighbours."""
        return {"weights": self.weights[self._of(client)].tolist()}


@register("strategy", "gossip", "d_psgd")
@dataclass(frozen=True, kw_only=True)
class Gossip(Strategy):
    """Average with neighbours in a graph.

    Args:
        graph: `ring`, `torus`, `complete`, `random_regular`, a file with a pair of ids on each line, or a list of
            pairs.
        degree: number of neighbours in `random_regular`, which is drawn from the run's seed.
    """

    graph: str | tuple[tuple[int, int], ...] = "ring"
    degree: int = 4

    client: ClassVar[str] = "gossip"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"graph": "complete"}, client={"order": "mix_train"}, fedavg={"weights": "uniform"}, bits=False
    )
    example_config: ClassVar[dict[str, Any]] = {"cohort": {"name": "uniform", "size": 8}}  # all clients

    def averages(self) -> bool:
        return True

    def init(self, model: Params, ctx: ServerContext) -> State:
        edges_of(self.graph, ctx.population, self.degree, ctx.seed)
        return State(Params(model.layout, tuple(b.expand(ctx.population, -1).clone() for b in model.buffers)))

    def model(self, state: State) -> Params:
        return Params(state.models.layout, tuple(b.mean(0) for b in state.models.buffers))

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        edges = edges_of(self.graph, ctx.population, self.degree, ctx.seed)
        active = np.isin(edges, ctx.cohort).all(1)
        links = Links(*directed(edges[active], ctx.population, metropolis(edges, ctx.population)[active]))
        rows = {"neighbours": links.models}
        return Broadcast(shared={"models": state.models}, rows=rows, config=links.config, hidden=("models",))

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {"sent": Stack()}

    def step(self, state: State, reduced: dict[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        models = state.models.clone()
        for copies, meta in reduced["sent"]:
            if copies:
                models.row(meta.client).copy_(copies[0])
        return State(models), {"consensus": _distance_to_mean(models)}


def _distance_to_mean(models: Params) -> float:
    """Return the root of the mean over clients of |x_i - mean|^2."""
    spread = sum(float((b - b.mean(0)).square().sum()) for b in models.buffers)
    return math.sqrt(spread / models.batch[0])
