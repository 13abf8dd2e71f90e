"""Federated Orthogonal Training (FOT): updates are kept out of the subspaces that the inputs of old tasks span.

    step <- lr * server optimiser(mean_i (w_i - w));   per protected layer  step <- step - (step U) U^T;   w <- w + step
    after the last round of a task, of the clients of that round (`clients/fot.py`, work gpse):
        Y = sum_i (I - U U^T) X_i G_i;    tau = (rho - (1 - eps)) / rho;    U <- [U, the first k left singular vectors of Y],
        k smallest with (s_1^2 + ... + s_k^2) / ||Y||^2 > tau;    eps <- min(eps + eps_increment, 1)

Bakman, Yaldiz, Ezzeldin, Avestimehr 2024 (ICLR), arXiv:2309.01289. With P parameters, a round costs P floats down and P up; the last
of a task besides, up sum_l (d_l m + 2) or sum_l (d_l (d_l + 1) / 2 + 2), down sum_l d_l k_l, and P more for gpse_model global.

gpse: sketch, with m = `sketch` * d columns, or gram, which sends the sum of R R^T: fewer floats, exact over clients, and exact
singular values (a sketch of m = d flattens them, so that k comes out too small where they decay slowly).
residual_ratio: norm, rho = sum n_i ||R_i|| / ||X_i|| / sum n_i as in the authors' program, which always adds at least one vector; or
energy, sum ||R_i||^2 / sum ||X_i||^2, which the criterion "keep eps of the energy of all inputs" needs: tau <= 0 adds nothing.
gpse_model: X is of the client's locally trained model, as in the program, or of the new global one.
protects: patterns of weights (default: all of linear and 2-d convolutional layers). head: patterns of weights that are not; where
each task has outputs of its own, name the last layer here: its rows of old tasks get no gradient, and new rows need all directions.
bias: freeze_after_first sets the step of tensors of one dimension (biases, affine normalisation), the head's left out, to zero after the
first task: they move outputs of old tasks however weights are projected. The default trains them, as the program does.

Differs from the program: the weighted mean (weights=uniform is the program's), Gaussian G in every model, evaluation mode, the basis
goes down in the last round of a task only, server optimisers (momentum, Adam), whose final step is projected: their memory is older
than the basis. Local momentum and weight decay are harmless, as the projection comes after them.
Neutral: as long as there is no basis (a single task, or the first) it is FedAvg, to the bit in a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fl.method.messages import Broadcast, Static
from fl.method.reduction import Sum, WeightedMean
from fl.method.requests import Exchange
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors import subspace
from fl.tensors.params import Params, match, sqrt, zeros_like


@dataclass(frozen=True)
class State:
    model: Params
    sizes: dict[str, int]  # name of a protected weight -> d
    eps: float
    bases: dict[str, Tensor]  # name -> U (d, k); empty in the first task
    moments: tuple[Params, ...]  # of the server optimiser


@register("strategy", "fot")
@dataclass(frozen=True, kw_only=True)
class FOT(Strategy):
    eps: float = 0.94
    eps_increment: float = 0.0
    gpse: Literal["sketch", "gram"] = "sketch"
    sketch: float = 1.0
    residual_ratio: Literal["norm", "energy"] = "norm"
    gpse_model: Literal["local", "global"] = "local"
    protects: tuple[str, ...] | None = None
    head: tuple[str, ...] = ()
    bias: Literal["train", "freeze_after_first"] = "train"
    weights: Literal["examples", "uniform"] = "examples"
    optimiser: Literal["none", "momentum", "adam"] = "none"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    adaptivity: float = 1e-3

    client: ClassVar[str] = "fot"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(bits=False)

    def __post_init__(self):
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps: {self.eps} is not in (0, 1]; at 1 every direction that inputs have is kept")
        if self.eps_increment < 0:
            raise ValueError(f"eps_increment: {self.eps_increment} is negative")
        if self.sketch <= 0:
            raise ValueError(f"sketch: {self.sketch} is not positive; it is the number of columns in multiples of d")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {allowed}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        if self.adaptivity <= 0:
            raise ValueError(f"adaptivity: {self.adaptivity} is not positive; it keeps Adam's step finite")

    def init(self, model, ctx):
        sizes = subspace.protected(ctx.module, model, self.protects, self.head)
        zeros = zeros_like(model)
        moments = {"none": (), "momentum": (zeros,), "adam": (zeros, zeros + self.adaptivity**2)}[self.optimiser]
        return State(model, sizes, self.eps, {}, moments)

    # -- an ordinary round -------------------------------------------------------------------------------------------
    def broadcast(self, state, ctx):
        carry = ctx.stage_ends and self.gpse_model == "local"
        return Broadcast(shared={"model": state.model}, config={"carry": True} if carry else {})

    def reduction(self, state, ctx):
        return WeightedMean(self.weights)

    def round(self, state, ctx):
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        if outcome.value is None:
            return state, {}
        state, metrics = self.step(state, outcome.value, ctx)
        if not ctx.stage_ends:
            return state, metrics
        extended = yield from self.boundary(state, outcome.clients, ctx.stage)
        return extended, {**metrics, **occupancy(extended)}

    def step(self, state, reduced, ctx):
        step, moments = self.optimised(state, reduced)
        return State(state.model + self.kept(step, state, ctx), state.sizes, state.eps, state.bases, moments), {}

    def optimised(self, state: State, mean: Params) -> tuple[Params, tuple[Params, ...]]:
        """(step, new moments) of the server optimiser: FedAvg's, FedAvgM's or FedAdam's."""
        if self.optimiser == "none":
            return self.lr * mean, ()
        if self.optimiser == "momentum":
            velocity = self.beta1 * state.moments[0] + mean
            return self.lr * velocity, (velocity,)
        m = self.beta1 * state.moments[0] + (1 - self.beta1) * mean
        v = self.beta2 * state.moments[1] + (1 - self.beta2) * (mean * mean)
        return self.lr * (m / (sqrt(v) + self.adaptivity)), (m, v)

    def kept(self, step: Params, state: State, ctx) -> Params:
        """What of a step is made: none of it within a basis, and of biases as `bias` says."""
        new = {n: subspace.project(step[n].double(), u.double()) for n, u in state.bases.items()}
        return self.biases_kept(step.replace(new) if new else step, ctx)

    def biases_kept(self, step: Params, ctx) -> Params:
        if self.bias == "train" or not ctx.stage:
            return step
        return step.replace({n: 0 * step[n] for n in self.frozen(step)})

    def frozen(self, model: Params) -> list[str]:
        """The tensors of one dimension, those of the head's layers left out."""
        heads = tuple(n.removesuffix("weight") for n in match(model, self.head))
        return [n for n in model if model[n].ndim == 1 and not (heads and n.startswith(heads))]

    # -- the end of a task -------------------------------------------------------------------------------------------
    def boundary(self, state: State, clients, stage: int):
        """Ask the clients what their inputs span, and take up what is due; returns the new state."""
        shared = {"model": state.model} if self.gpse_model == "global" else {}
        static = {"basis": Static(stage, state.bases)} if state.bases else {}
        factor = self.sketch if self.gpse == "sketch" else 0.0
        config = {"sizes": state.sizes, "factor": factor, "ratio": self.residual_ratio}
        outcome = yield Exchange(
            Broadcast(shared, static=static, config=config), {"sketch": Sum()}, work="gpse", cohort=clients
        )
        eps = min(state.eps + self.eps_increment, 1.0)
        if outcome.value is None:
            return State(state.model, state.sizes, eps, state.bases, state.moments)
        bases = {}
        for name, sent in outcome.value["sketch"].items():
            u = self.extended(state.bases.get(name), sent["y"], sent["norms"], state.eps)
            if u is not None:
                bases[name] = u
        return State(state.model, state.sizes, eps, bases, state.moments)

    def extended(self, basis: Tensor | None, y: Tensor, norms: Tensor, eps: float) -> Tensor | None:
        """The basis with what a task adds: y, norms are the sums over clients."""
        ratio = 1.0 if basis is None else float(norms[0] / norms[1].clamp(min=1e-30))
        tau, least = subspace.threshold(ratio, eps), 1 if self.residual_ratio == "norm" else 0
        if self.gpse == "sketch":
            return subspace.extend_basis_from_sketch(basis, y, tau, least)
        return subspace.extend_basis_from_gram(basis, subspace.unpacked(y), tau, least)


def occupancy(state: State) -> dict[str, float]:
    """Per layer the size k of its basis, and capacity k / d: at 1 nothing of the layer can change any more."""
    sizes = {n: state.bases[n].shape[1] if n in state.bases else 0 for n in state.sizes}
    layer = {n: n.removesuffix(".weight") for n in sizes}
    basis = {f"basis/{layer[n]}": k for n, k in sizes.items()}
    return basis | {f"capacity/{layer[n]}": k / state.sizes[n] for n, k in sizes.items()}


CHOICES = {
    "gpse": ["sketch", "gram"],
    "residual_ratio": ["norm", "energy"],
    "gpse_model": ["local", "global"],
    "bias": ["train", "freeze_after_first"],
    "weights": ["examples", "uniform"],
    "optimiser": ["none", "momentum", "adam"],
}
