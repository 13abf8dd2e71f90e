"""Federated Orthogonal Training (FOT): updates stay outside the subspaces that the inputs of old tasks span.

    step <- lr * server optimiser(mean_i (w_i - w));   per protected layer  step <- step - (step U) U^T;   w <- w + step
    after the last round of a task, of the clients of that round (`clients/fot.py`, work gpse):
        Y = sum_i (I - U U^T) X_i G_i;  tau = (rho - (1 - eps)) / rho
        U <- [U, the first k left singular vectors of Y],
        k smallest with (s_1^2 + ... + s_k^2) / ||Y||^2 > tau;    eps <- min(eps + eps_increment, 1)

Bakman, Yaldiz, Ezzeldin, Avestimehr 2024 (ICLR), arXiv:2309.01289.  With P parameters, a round costs P floats down
and P up. The last round of a task also costs sum_l (d_l m + 2) up with a sketch, sum_l (d_l (d_l + 1) / 2 + 2) up
with a Gram matrix, sum_l d_l k_l down, and P more down for global_inputs.

A sketch with m = d flattens the singular values, so k comes out too small if they decay slowly; the Gram matrix is
exact. The norm ratio is the authors' program's and always adds at least one vector; the criterion "keep eps of the
energy of all inputs" needs the energy ratio, with which tau <= 0 adds nothing (`fl/tensors/input_statistics.py`).

Differs from the program: the weighted mean (weights=uniform is the program's), Gaussian G in every model, evaluation
mode; the basis goes down only in the last round of a task; server optimisers, whose final step is projected, because
their moments are older than the basis.  Local momentum and weight decay do no harm: the projection comes after them.
If no client answers in the last round of a task, the cohort is asked about its inputs under the global model; if it
does not answer either, the next clients that answer are asked, about the data that they have then.
Equals FedAvg: as long as there is no basis (a single task, or the first), equal bits in the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from fl import (
    Broadcast,
    Exchange,
    FedAvgEquivalent,
    Metrics,
    OptimiserState,
    Params,
    Plain,
    RoundGenerator,
    ServerContext,
    ServerOptimiser,
    Static,
    Strategy,
    Sum,
    WeightedMean,
    checks,
    input_statistics,
    match,
    register,
    subspace,
)

SAMPLES = 128  # test samples of the forward pass that shows which layers the model calls


@dataclass(frozen=True)
class State:
    """The model and the protected subspaces.

    Args:
        model: the model.
        sizes: protected weight -> d, the size of the layer's inputs.
        eps: the present threshold.
        bases: protected weight -> U (d, k); empty in the first task.
        optimiser: the server optimiser's state.
        tasks: number of tasks that the bases cover; the version of the bases.
    """

    model: Params
    sizes: dict[str, int]
    eps: float
    bases: dict[str, Tensor]
    optimiser: OptimiserState
    tasks: int = 0


@register("strategy", "fot")
@dataclass(frozen=True, kw_only=True)
class FOT(Strategy):
    """FedAvg with steps that leave the outputs of old tasks unchanged.

    Args:
        eps: share of the inputs of a task that its basis has to hold, in (0, 1]. At 1 every direction is kept.
        eps_increment: added to eps after each task, at least 0.
        gpse: what clients send about layer inputs: `sketch` or `gram` (fewer floats, exact).
        sketch: columns of a sketch, in multiples of the layer's input size; positive. Used with gpse `sketch`.
        residual_ratio: `norm` (the authors' program) or `energy`.
        global_inputs: take layer inputs from the new global model; False: from each client's model after local training
            (the authors' program).
        protects: glob patterns of the protected weights. They have to belong to linear and 2-d convolutional layers
            that `forward` calls. Default: all trained tensors of two or more dimensions.
        head: glob patterns of weights that are not protected. If each task has its own outputs, name the last layer:
            its rows of old tasks get no gradient, and new rows need all directions.
        freeze_biases: after the first task, tensors of one dimension (biases, affine normalisation) outside the head no
            longer move; a projection of weights does not stop their effect.
        weights: weights of the mean: `examples` (number of training samples) or `uniform` (the program's).
        lr: factor of each step of the server. 1 is FedAvg.
        server_optimiser: how the server moves along the mean update. `plain` is FedAvg.
    """

    eps: float = 0.94
    eps_increment: float = 0.0
    gpse: Literal["sketch", "gram"] = "sketch"
    sketch: float = 1.0
    residual_ratio: Literal["norm", "energy"] = "norm"
    global_inputs: bool = False
    protects: tuple[str, ...] | None = None
    head: tuple[str, ...] = ()
    freeze_biases: bool = False
    weights: Literal["examples", "uniform"] = "examples"
    lr: float = 1.0
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "fot"
    later_metrics: ClassVar[tuple[str, ...]] = ("basis/*", "capacity/*")
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(bits=False)

    def __post_init__(self) -> None:
        checks.within("(0, 1]", eps=self.eps, hint="at 1 every direction of the inputs is kept")
        checks.not_negative(eps_increment=self.eps_increment)
        checks.positive(sketch=self.sketch, hint="it is the number of columns in multiples of d")
        checks.one_of(("sketch", "gram"), gpse=self.gpse)
        checks.one_of(input_statistics.RATIOS, residual_ratio=self.residual_ratio)
        checks.one_of(("examples", "uniform"), weights=self.weights)

    @property
    def factor(self) -> float:
        """Columns of a sketch in multiples of d; 0 asks clients for Gram matrices."""
        return self.sketch if self.gpse == "sketch" else 0.0

    def init(self, model: Params, ctx: ServerContext) -> State:
        sizes = subspace.protected(ctx.module, model, self.protects, self.head)
        if ctx.test.get("x") is not None and len(ctx.test["x"]):
            subspace.check_inputs_are_seen(ctx.module, list(sizes), ctx.test["x"][:SAMPLES])
        return State(model, sizes, self.eps, {}, self.server_optimiser.init(model))

    # -- an ordinary round -------------------------------------------------------------------------------------------
    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        carry = boundary(state, ctx) and not self.global_inputs
        return Broadcast(shared={"model": state.model}, config={"carry": True} if carry else {})

    def reduction(self, state: State, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        metrics: Metrics = {}
        if outcome.value is not None:
            state, metrics = self.step(state, outcome.value, ctx)
        if not boundary(state, ctx):
            return state, metrics
        unanswered = outcome.value is None  # then no client carries a model that it trained
        clients = ctx.cohort if unanswered else outcome.clients
        if not len(clients):
            return state, metrics
        extended = yield from self.end_of_task(state, clients, ctx, self.global_inputs or unanswered)
        return extended, {**metrics, **occupancy(extended)}

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        change, optimiser = self.server_optimiser.change(state.model, reduced, state.optimiser)
        change = self.allowed(self.lr * change, state, ctx)
        return replace(state, model=state.model + change, optimiser=optimiser), {}

    def allowed(self, change: Params, state: State, ctx: ServerContext) -> Params:
        """Return the part of a step that is made: outside the bases, and without frozen biases."""
        projected = {n: subspace.project(change[n].double(), u.double()) for n, u in state.bases.items()}
        return self.without_frozen_biases(change.replace(projected) if projected else change, ctx)

    def without_frozen_biases(self, change: Params, ctx: ServerContext) -> Params:
        """Return the step without the tensors that `freeze_biases` keeps."""
        if not self.freeze_biases or not ctx.period:
            return change
        return change.replace({n: 0 * change[n] for n in biases(change, self.head)})

    # -- the end of a task -------------------------------------------------------------------------------------------
    def end_of_task(
        self, state: State, clients: np.ndarray, ctx: ServerContext, global_inputs: bool
    ) -> Generator[Exchange, Any, State]:
        """Ask the clients which directions their inputs span, and extend the bases by them.

        Without an answer the state does not change, and the next round asks again.
        """
        shared = {"model": state.model} if global_inputs else {}
        static = {"basis": Static(state.tasks, state.bases)} if state.bases else {}
        config = {"sizes": state.sizes, "factor": self.factor, "ratio": self.residual_ratio}
        broadcast = Broadcast(shared, static=static, config=config)
        outcome = yield Exchange(broadcast, {"sketch": Sum()}, work="gpse", cohort=clients)
        if outcome.value is None:
            return state
        bases, sketches = {}, outcome.value["sketch"]
        if not state.bases and outcome.num_examples.any():
            warn_about_unseen([name for name, sent in sketches.items() if not sent["y"].any()])
        for name, sent in sketches.items():
            u = self.extended(state.bases.get(name), sent["y"], sent["norms"], state.eps)
            if u is not None:
                bases[name] = u
        eps, tasks = min(state.eps + self.eps_increment, 1.0), ctx.period + ctx.period_ends
        return replace(state, eps=eps, bases=bases, tasks=tasks)

    def extended(self, basis: Tensor | None, y: Tensor, norms: Tensor, eps: float) -> Tensor | None:
        """Return the basis with the directions that a task adds; y and norms are sums over clients."""
        ratio = 1.0 if basis is None else float(norms[0] / norms[1].clamp(min=1e-30))
        least = input_statistics.RATIOS[self.residual_ratio].least
        return input_statistics.statistic_of(self.factor).extend(basis, y, subspace.threshold(ratio, eps), least)


def boundary(state: State, ctx: ServerContext) -> bool:
    """Return whether the bases are to be extended: a task ends, or no client has answered since the last one ended."""
    return ctx.period_ends or state.tasks < ctx.period


def warn_about_unseen(names: list[str]) -> None:
    """Log which layers are not protected because their inputs were never seen, or were all zero."""
    if names:
        logging.getLogger(__name__).warning(
            "the weights %s are not protected: the clients saw no input of their layers other than zero. "
            "Does forward use the weight without calling the layer?",
            names,
        )


def biases(model: Params, head: tuple[str, ...]) -> list[str]:
    """Return the names of the tensors of one dimension, without those of the head's layers."""
    heads = tuple(n.removesuffix("weight") for n in match(model, head))
    return [n for n in model if model[n].ndim == 1 and not (heads and n.startswith(heads))]


def occupancy(state: State) -> dict[str, float]:
    """Return per layer the size k of its basis, and its capacity k / d; at 1 the layer cannot change any more."""
    sizes = {n: state.bases[n].shape[1] if n in state.bases else 0 for n in state.sizes}
    layer = {n: n.removesuffix(".weight") for n in sizes}
    basis: dict[str, float] = {f"basis/{layer[n]}": k for n, k in sizes.items()}
    return basis | {f"capacity/{layer[n]}": k / state.sizes[n] for n, k in sizes.items()}
