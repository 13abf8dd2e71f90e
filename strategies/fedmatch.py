"""FedMatch: FedAvg of both parts of the weights; each client also receives models of similar clients.

    s, u <- s + sum_i p_i (s_i - s),  u + sum_i p_i (u_i - u)         (`clients/fedmatch.py` has the local steps)
    helpers of client i: the `helpers` models of the last cohort, without its own, with the outputs nearest to i's

Outputs are those for `probes` inputs of standard Gaussian noise, on the same inputs in all rounds.  A client that has
not taken part yet has the mean of the outputs at hand.
Jeong, Yoon, Yang, Hwang 2021, arXiv:2006.12097.  Traffic per client and round: 2 |w| up and (2 + 2 helpers) |w| down;
in the first round there are no helpers.
Differs from the paper: helpers are chosen in each round among the last cohort; all differences are sent, not sparse
ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fl import (
    Broadcast,
    Exchange,
    FedAvgEquivalent,
    Meta,
    OptimiserState,
    Params,
    Reduction,
    RoundGenerator,
    ServerContext,
    ServerWork,
    Stack,
    Tree,
    WeightedMean,
    checks,
    random,
    register,
)

from .fedavg import FedAvg

PSI = "psi."  # the names of the second part


@dataclass(frozen=True)
class State:
    """The model, what the server optimiser remembers, and what helpers are chosen from.

    Args:
        model: both parts of the weights.
        optimiser: what the server optimiser remembers.
        pool: client -> its model, of the last cohort.
        outputs: client -> its model's outputs for the probes, (probes, K), of all clients that have taken part.
    """

    model: Params
    optimiser: OptimiserState
    pool: Mapping[int, Params] = field(default_factory=dict)
    outputs: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class MeanAndUpdates(Reduction):
    """The weighted mean, and the updates themselves. Memory grows with the cohort.

    Args:
        mean: the mean.
    """

    mean: WeightedMean

    def lift(self, value: Tree, meta: Meta) -> tuple[Any, Any]:
        kept = Stack().lift(value.clone(), meta)  # the mean may use the update's memory
        return self.mean.lift(value, meta), kept

    def merge(self, a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
        return self.mean.merge(a[0], b[0]), Stack().merge(a[1], b[1])

    def finish(self, acc: tuple[Any, Any]) -> tuple[Params, Any]:
        return self.mean.finish(acc[0]), acc[1]


def nearest(outputs: Mapping[int, Tensor], pool: list[int], client: int, count: int) -> tuple[int, ...]:
    """Return up to `count` clients of the pool, without `client`, whose outputs are nearest to the client's.

    >>> outputs = {c: torch.tensor([float(c)]) for c in (1, 2, 5, 6)}
    >>> nearest(outputs, [1, 2, 5], 6, 2), nearest(outputs, [1, 2, 5], 2, 2)
    ((5, 2), (1, 5))
    """
    others = [other for other in pool if other != client]
    if not others:
        return ()
    own = outputs[client] if client in outputs else torch.stack([outputs[other] for other in pool]).mean(0)
    return tuple(sorted(others, key=lambda other: (float((outputs[other] - own).square().sum()), other))[:count])


def outputs_of(module: nn.Module, frozen: Params, models: Mapping[int, Params], x: Tensor) -> dict[int, Tensor]:
    """Return client -> outputs (N, K) of its model for x (N, ...)."""
    net = copy.deepcopy(module).eval()
    with torch.no_grad():
        return {client: torch.func.functional_call(net, {**frozen, **w}, (x,)) for client, w in models.items()}


@dataclass(frozen=True)
class Helpers:
    """Function of the client: the models of its helpers, from the shared group `pool`.

    Args:
        places: client -> positions of its helpers in the pool.
    """

    places: Mapping[int, tuple[int, ...]]

    def __call__(self, client: int, shared: Mapping[str, Tree], state: Tree) -> Tree:
        return tuple(shared["pool"][place] for place in self.places.get(client, ()))


@register("strategy", "fedmatch")
@dataclass(frozen=True, kw_only=True)
class FedMatch(FedAvg):
    """FedAvg of weights in two parts, with helpers among the other clients.

    Args:
        helpers: models of other clients that a client receives, at least 0.
        probes: random inputs on which models are compared, positive.
    """

    helpers: int = 2
    probes: int = 10

    client: ClassVar[str] = "fedmatch"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None

    def __post_init__(self) -> None:
        checks.not_negative(helpers=self.helpers, hint="0 sends none")
        checks.positive(probes=self.probes)

    def init(self, model: Params, ctx: ServerContext) -> Any:
        alone = sorted(name for name in model if f"{PSI}{name}" not in model and not name.startswith(PSI))
        alone += sorted(name for name in model if name.startswith(PSI) and name.removeprefix(PSI) not in model)
        if alone:
            raise ValueError(
                f"name: fedmatch trains two parts of each weight, and only {alone[0]} is trained; use client: "
                f"fedmatch, and freeze the other part too, such as model.freeze: [1.*, {PSI}1.*]"
            )
        return State(model, self.server_optimiser.init(model))

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        pool = list(state.pool)
        chosen = {int(client): nearest(state.outputs, pool, int(client), self.helpers) for client in ctx.cohort}
        helpers = Helpers({client: tuple(map(pool.index, ids)) for client, ids in chosen.items()})
        shared = {"model": state.model, "pool": tuple(state.pool.values())}
        broadcast = Broadcast(shared=shared, rows={"helpers": helpers}, hidden=("pool",))
        outcome = yield Exchange(broadcast, {"model": MeanAndUpdates(WeightedMean(self.weights))})
        if outcome.value is None:
            return state, {}
        mean, updates = outcome.value["model"]
        model, optimiser = self.server_optimiser.step(state.model, mean, state.optimiser, self.lr)
        if not self.helpers:
            return State(model, optimiser), {}
        sent = {meta.client: state.model + update for update, meta in updates}
        drawn = random.torch_generator(ctx.seed, "server", "probes")
        probes = torch.randn((self.probes, *ctx.sample_shape), generator=drawn)
        outputs = yield ServerWork(outputs_of, (ctx.module, ctx.frozen, sent, probes))
        return State(model, optimiser, sent, {**state.outputs, **outputs}), {}
