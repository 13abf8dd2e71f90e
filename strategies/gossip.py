"""Gossip (D-PSGD): no server; each client averages its model with its neighbours' in a graph, and trains it.

    x_i <- sum_j W_ij x_j  +  local training          W: Metropolis weights of the graph, see `strategies/graphs.py`

Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, arXiv:1705.09056, Algorithm 1 with the client's order=together; see `clients/gossip.py`.
`graph`: ring, torus, complete, random_regular (of `degree`, drawn by the run's seed), a file of pairs of ids or a list of them.
A client keeps its own model in its state.  The simulator holds what each has last sent, clients x model, in the strategy's
state: it hands on to each client the models of its neighbours, and their mean is what the server's evaluation asks.
In a round each client receives a model from each neighbour and sends one to each: the ledger has both ends of every directed
edge.  A codec acts on the way up and again on the way down; fp16, bf16 and top_k change nothing the second time.
Of a cohort that is not everybody, neighbours who are both in it average, and the rest of a row of W is the client's own: W stays
doubly stochastic.  Who has no neighbour there trains alone and sends nothing; others go on with what it sent last.
Differs from the paper: by default clients train the average, not their own model; local training may be many steps; virtual time does not wait for neighbours but for all.
Neutral: the complete graph with everybody in each round and order=mix_train is FedAvg of uniform weights, to 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.method.messages import Broadcast
from fl.method.reduction import Stack
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params
from strategies.graphs import directed, edges_of, metropolis


@dataclass(frozen=True)
class State:
    models: Params  # (N, ...): what each client has last sent


@dataclass(frozen=True)
class Links:
    """Who hears whom, and with what weight: see `directed`."""

    begins: np.ndarray
    others: np.ndarray
    weights: np.ndarray

    def _of(self, client: int) -> slice:
        """A client who is not in the graph (held out, or the server's evaluation) hears nobody."""
        return slice(self.begins[client], self.begins[client + 1]) if 0 <= client < len(self.begins) - 1 else slice(0)

    def heard(self, client: int, shared: Mapping[str, Any]) -> tuple[Params, ...]:
        return tuple(shared["models"].row(int(other)) for other in self.others[self._of(client)])

    def config(self, client: int) -> dict[str, Any]:
        return {"weights": self.weights[self._of(client)].tolist()}


@register("strategy", "gossip", "d_psgd")
@dataclass(frozen=True, kw_only=True)
class Gossip(Strategy):
    graph: str | tuple[tuple[int, int], ...] = "ring"
    degree: int = 4

    client: ClassVar[str] = "gossip"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"graph": "complete"}, client={"order": "mix_train"}, fedavg={"weights": "uniform"}, bits=False
    )
    example_config: ClassVar[dict[str, Any]] = {"cohort": {"name": "uniform", "size": 8}}  # everybody

    def averages(self):
        return True

    def init(self, model, ctx):
        edges_of(self.graph, ctx.population, self.degree, ctx.seed)
        return State(Params(model.layout, tuple(b.expand(ctx.population, -1).clone() for b in model.buffers)))

    def model(self, state):
        return Params(state.models.layout, tuple(b.mean(0) for b in state.models.buffers))

    def broadcast(self, state, ctx):
        edges = edges_of(self.graph, ctx.population, self.degree, ctx.seed)
        active = np.isin(edges, ctx.cohort).all(1)
        links = Links(*directed(edges[active], ctx.population, metropolis(edges, ctx.population)[active]))
        rows = {"neighbours": links.heard}
        return Broadcast(shared={"models": state.models}, rows=rows, config=links.config, hidden=("models",))

    def reduction(self, state, ctx):
        return {"sent": Stack()}

    def step(self, state, reduced, ctx):
        models = state.models.clone()
        for copies, meta in reduced["sent"]:
            if copies:
                models.row(meta.client).copy_(copies[0])
        return State(models), {"consensus": _apart(models)}


def _apart(models: Params) -> float:
    """The root of the mean over clients of |x_i - mean|^2."""
    spread = sum(float((b - b.mean(0)).square().sum()) for b in models.buffers)
    return math.sqrt(spread / models.batch[0])
