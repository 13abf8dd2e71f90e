"""Hypernetworks: a network of the server makes each client's whole model from a short vector, the client's descriptor.

    z <- v;    z <- relu(W_k z + b_k) for each hidden layer k;    theta_t = W_t z + b_t for each tensor t of the model

The tensors of the hypernetwork are named "hyper.hidden.K.weight", "hyper.heads.TENSOR.weight" and so on; a head's
weight has the shape (*shape of the tensor, width of z), so names and shapes of the model follow from them.  A client
answers theta_i with theta'_i after local training. theta_i - theta'_i takes the place of the gradient of its loss at
theta_i, and the chain rule leads on to the hypernetwork and to v_i (`pull_back`).  The workers do both, in
`Broadcast.rows` and in the reduction: neither the models nor the updates of a cohort lie on the driver, and the
hypernetwork is in no message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fl import (
    Broadcast,
    Meta,
    Metrics,
    OptimiserState,
    Params,
    PseudoGradient,
    Reduction,
    ServerContext,
    ServerOptimiser,
    Strategy,
    Tree,
    checks,
    norm,
)

HIDDEN, HEADS = "hyper.hidden.", "hyper.heads."
SMALL = 0.1  # factor of the heads' first weights: with larger ones, the first models start saturated


def first_hypernetwork(model: Params, length: int, hidden: tuple[int, ...], generator: torch.Generator) -> Params:
    """Return a hypernetwork whose first models are near `model`.

    With n inputs, weights of hidden layers are uniform in +- sqrt(6 / n), which keeps the size of z through the relus
    (He et al. 2015, arXiv:1502.01852), their biases in +- 1 / sqrt(n), and weights of heads in +- `SMALL` / sqrt(n).
    The biases of the heads are `model`.

    Args:
        model: the model of the run.
        length: number of elements of a descriptor.
        hidden: width of each hidden layer.
        generator: of the weights.
    """

    def uniform(n: int, *shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(n)

    tensors, width = dict[str, Tensor](), length
    for k, wide in enumerate(hidden):
        tensors |= {
            f"{HIDDEN}{k}.weight": math.sqrt(6) * uniform(width, wide, width),
            f"{HIDDEN}{k}.bias": uniform(width, wide),
        }
        width = wide
    for name, tensor in model.items():
        weight = SMALL * uniform(width, *tensor.shape, width)
        tensors |= {f"{HEADS}{name}.weight": weight.to(tensor.dtype), f"{HEADS}{name}.bias": tensor}
    return Params.of(tensors)


def standardised(v: Tensor) -> Tensor:
    """Return (v - mean v) / (std v + 1e-6), over the elements of one descriptor v (l,).

    >>> standardised(torch.tensor([1.0, 3.0])).round(decimals=4).tolist()
    [-1.0, 1.0]
    """
    centred = v - v.mean()
    return centred / (centred.square().mean().sqrt() + 1e-6)


def _tensors(hyper: Mapping[str, Tensor], z: Tensor) -> dict[str, Tensor]:
    """Return the tensors of the model of a descriptor z (l,), by name."""
    for k in range(sum(name.startswith(HIDDEN) for name in hyper) // 2):
        z = F.relu(F.linear(z, hyper[f"{HIDDEN}{k}.weight"], hyper[f"{HIDDEN}{k}.bias"]))
    weights = {name: weight for name, weight in hyper.items() if name.startswith(HEADS) and name.endswith(".weight")}
    names = {name: name.removesuffix(".weight") for name in weights}
    return {names[n].removeprefix(HEADS): weight @ z + hyper[f"{names[n]}.bias"] for n, weight in weights.items()}


def generate(hyper: Params, v: Tensor, standardise: bool = False) -> Params:
    """Return the model of a descriptor v (l,).

    >>> hyper = {"hyper.heads.w.weight": torch.tensor([[2.0]]), "hyper.heads.w.bias": torch.tensor([0.0])}
    >>> generate(Params.of(hyper), torch.tensor([3.0]))["w"].tolist()
    [6.0]
    """
    with torch.no_grad():
        return Params.of(_tensors(hyper, standardised(v) if standardise else v))


def pull_back(hyper: Params, v: Tensor, gradient: Params, standardise: bool = False) -> tuple[Params, Tensor]:
    """Return the gradients of the hypernetwork and of v (l,), from the gradient of the model that they make.

    >>> hyper = {"hyper.heads.w.weight": torch.tensor([[2.0]]), "hyper.heads.w.bias": torch.tensor([0.0])}
    >>> of_hyper, of_v = pull_back(Params.of(hyper), torch.tensor([3.0]), Params.of({"w": torch.tensor([0.5])}))
    >>> of_hyper["hyper.heads.w.weight"].tolist(), of_v.tolist()
    ([[1.5]], [1.0])
    """
    with torch.enable_grad():
        leaves = {name: hyper[name].detach().requires_grad_() for name in hyper}
        v = v.detach().requires_grad_()
        model = _tensors(leaves, standardised(v) if standardise else v)
        wanted = [*leaves.values(), v]
        *found, of_v = torch.autograd.grad(list(model.values()), wanted, [gradient[name] for name in model])
    return Params.of(dict(zip(leaves, found))), of_v


@dataclass(frozen=True)
class Generate:
    """The model of a client, from the shared groups "hyper" and "descriptors" (by client).

    Args:
        standardise: whether descriptors are standardised.
    """

    standardise: bool = False

    def __call__(self, client: int, shared: Mapping[str, Any], state: Tree) -> Params:
        return generate(shared["hyper"], shared["descriptors"][client], self.standardise)


@dataclass(frozen=True)
class Pulled:
    """Gradients of a cohort.

    Attributes:
        hyper: sum of the clients' gradients of the hypernetwork.
        descriptors: gradient of each client's descriptor, (l,).
    """

    hyper: Params
    descriptors: dict[int, Tensor]


@dataclass(frozen=True)
class PullBack(Reduction):
    """The gradients of the hypernetwork and of the descriptors, from the clients' updates theta'_i - theta_i.

    Args:
        hyper: the hypernetwork.
        descriptors: the clients' descriptors, (l,) each.
        standardise: whether descriptors are standardised.
    """

    hyper: Params
    descriptors: Mapping[int, Tensor]
    standardise: bool = False

    def lift(self, value: Params, meta: Meta) -> Pulled:
        client = int(meta.client)
        of_hyper, of_v = pull_back(self.hyper, self.descriptors[client], -value, self.standardise)
        return Pulled(of_hyper, {client: of_v})

    def merge(self, a: Pulled, b: Pulled) -> Pulled:
        return Pulled(a.hyper.add_(b.hyper), a.descriptors | b.descriptors)


@dataclass(frozen=True)
class State:
    """All networks of the server, and what its optimiser remembers. Names of the hypernetwork begin with "hyper."."""

    networks: Params
    optimiser: OptimiserState

    @property
    def hyper(self) -> Params:
        """The hypernetwork."""
        return self.networks.select(["hyper.*"])

    @property
    def length(self) -> int:
        """Number of elements of a descriptor."""
        return next(iter(self.hyper.values())).shape[-1]  # inputs of the first layer


@dataclass(frozen=True, kw_only=True)
class Hypernetwork(Strategy):
    """Base of PeFLL and pFedHN.

    Args:
        descriptor: number of elements of a client's descriptor, at least 1. Default: 1 + floor(N / 4) for N training
            clients.
        hidden: width of each hidden layer of the hypernetwork.
        clip: largest Euclidean norm of the gradient of all networks together, positive. None: no limit.
        decay: strength of the L2 penalty decay / 2 |networks|^2, at least 0.
        server_optimiser: how the networks move along the gradient.
    """

    descriptor: int | None = None
    hidden: tuple[int, ...] = (100, 100, 100, 100)
    clip: float | None = 50.0
    decay: float = 0.0
    server_optimiser: ServerOptimiser = PseudoGradient()

    def __post_init__(self) -> None:
        checks.at_least(1, descriptor=self.descriptor)
        checks.positive(clip=self.clip)
        checks.not_negative(decay=self.decay)
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: {self.hidden} has a width that is not positive")

    def length(self, ctx: ServerContext) -> int:
        """Return the number of elements of a descriptor."""
        return 1 + ctx.population // 4 if self.descriptor is None else self.descriptor

    def first_networks(self, model: Params, ctx: ServerContext) -> Params:
        """Return the hypernetwork before round 0."""
        return first_hypernetwork(model, self.length(ctx), self.hidden, ctx.generator("hypernetwork"))

    def init(self, model: Params, ctx: ServerContext) -> State:
        networks = self.first_networks(model, ctx)
        return State(networks, self.server_optimiser.init(networks))

    def model(self, state: State) -> Params:
        """Return the model of the descriptor 0; the clients' own models are in no file."""
        return generate(state.hyper, torch.zeros(state.length))

    def generated(self, state: State, descriptors: Mapping[int, Tensor], standardise: bool = False) -> Broadcast:
        """Return the broadcast of each client's model."""
        shared = {"hyper": state.hyper, "descriptors": descriptors}
        return Broadcast(shared=shared, rows={"model": Generate(standardise)}, hidden=("hyper", "descriptors"))

    def moved(self, state: State, gradient: Params) -> tuple[State, Metrics]:
        """Return (the state after a step along minus `gradient` of all networks, metrics)."""
        if self.decay:
            gradient = gradient + self.decay * state.networks
        length = norm(gradient)
        if self.clip is not None:
            gradient = gradient * (self.clip / length.clamp(min=self.clip))
        networks, optimiser = self.server_optimiser.step(state.networks, -gradient, state.optimiser)
        return State(networks, optimiser), {"gradient_norm": float(length)}
