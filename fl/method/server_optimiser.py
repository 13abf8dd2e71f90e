"""Server optimisers: how the model moves along the mean update of a cohort.

    plain            change = lr d
    momentum         u <- beta u + d;                              change = lr u    (Nesterov: lr (d + beta u))
    adagrad          v <- v + d^2                                  |
    adam             v <- beta2 v + (1 - beta2) d^2                |  m <- beta1 m + (1 - beta1) d
    yogi             v <- v - (1 - beta2) d^2 sign(v - d^2)        |  change = lr m / (sqrt(v) + tau)
    pseudo_gradient  a step of a local optimiser along the gradient -d

d is the mean update (local minus broadcast), so `model <- model + change`. u and m start at 0 and v at tau^2.

Momentum: Hsu, Qi, Brown 2019, arXiv:1909.06335. Adagrad, Adam, Yogi: Reddi, Charles, Zaheer, Garrett, Rush, Konečný,
Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2; as in the paper there is no bias correction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl.checks import not_negative, positive, within
from fl.method.optimiser import Adam as LocalAdam
from fl.method.optimiser import Optimiser
from fl.registry import register
from fl.tensors.params import Params, sign, sqrt, zeros_like


@dataclass(frozen=True)
class OptimiserState:
    """What a server optimiser remembers between rounds.

    Args:
        moments: trees like the model, by name; empty for `Plain`.
        steps: number of steps so far.
    """

    moments: Mapping[str, Params] = field(default_factory=dict)
    steps: int = 0

    def after_step(self, **moments: Params) -> OptimiserState:
        """Return the state after one more step, with new moments."""
        return OptimiserState(moments, self.steps + 1)


class ServerOptimiser:
    """Base of server optimisers: a frozen dataclass that defines `init` and `change`."""

    def init(self, params: Params) -> OptimiserState:
        """Return the state before the first step."""
        return OptimiserState()

    def change(self, params: Params, mean_update: Params, state: OptimiserState) -> tuple[Params, OptimiserState]:
        """Return what the step adds to `params`, and the next state."""
        raise NotImplementedError

    def step(
        self, params: Params, mean_update: Params, state: OptimiserState, lr: float = 1.0
    ) -> tuple[Params, OptimiserState]:
        """Return the next parameters, `params + lr * change`, and the next state."""
        change, state = self.change(params, mean_update, state)
        return params + (change if lr == 1 else lr * change), state

    def averages(self, lr: float = 1.0) -> bool:
        """Return whether the next model lies between the last one and the clients' mean (`Strategy.averages`)."""
        return False


@register("server_optimiser", "plain")
@dataclass(frozen=True, kw_only=True)
class Plain(ServerOptimiser):
    """A step along the mean update, without memory: model <- model + lr d.

    >>> import torch
    >>> model, mean = (Params.of({"w": torch.tensor(values)}) for values in ([1.0, 2.0], [4.0, -2.0]))
    >>> Plain(lr=0.5).step(model, mean, OptimiserState())[0]["w"].tolist()
    [3.0, 1.0]

    Args:
        lr: server learning rate, at least 0. 1 is FedAvg.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        not_negative(lr=self.lr)

    def change(self, params: Params, mean_update: Params, state: OptimiserState) -> tuple[Params, OptimiserState]:
        return (mean_update if self.lr == 1 else self.lr * mean_update), state.after_step()

    def averages(self, lr: float = 1.0) -> bool:
        return 0 < lr * self.lr <= 1


@register("server_optimiser", "momentum")
@dataclass(frozen=True, kw_only=True)
class Momentum(ServerOptimiser):
    """Server momentum: u <- beta u + d;   model <- model + lr u, or with Nesterov model + lr (d + beta u).

    Args:
        lr: server learning rate, at least 0.
        beta: weight of the last velocity, in [0, 1). 0 is `Plain`.
        nesterov: look ahead along the new velocity (Sutskever, Martens, Dahl, Hinton 2013).
    """

    lr: float = 1.0
    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        not_negative(lr=self.lr)
        within("[0, 1)", beta=self.beta, hint="at 1 the velocity never decays")

    def init(self, params: Params) -> OptimiserState:
        return OptimiserState({"velocity": zeros_like(params)})

    def change(self, params: Params, mean_update: Params, state: OptimiserState) -> tuple[Params, OptimiserState]:
        velocity = self.beta * state.moments["velocity"] + mean_update
        direction = mean_update + self.beta * velocity if self.nesterov else velocity
        return self.lr * direction, state.after_step(velocity=velocity)

    def averages(self, lr: float = 1.0) -> bool:
        return self.beta == 0 and 0 < lr * self.lr <= 1


@dataclass(frozen=True, kw_only=True)
class Adaptive(ServerOptimiser):
    """Base of Adagrad, Adam and Yogi. They differ only in `second_moment`."""

    lr: float = 0.1
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        not_negative(lr=self.lr)
        within("[0, 1)", beta1=self.beta1, hint="at 1 no update would ever enter")
        positive(tau=self.tau, hint="it keeps the step finite where updates are zero")

    def second_moment(self, v: Params, square: Params) -> Params:
        """Return the next v, from the last v and d^2."""
        raise NotImplementedError

    def init(self, params: Params) -> OptimiserState:
        zeros = zeros_like(params)
        return OptimiserState({"m": zeros, "v": zeros + self.tau**2})

    def change(self, params: Params, mean_update: Params, state: OptimiserState) -> tuple[Params, OptimiserState]:
        m = self.beta1 * state.moments["m"] + (1 - self.beta1) * mean_update
        v = self.second_moment(state.moments["v"], mean_update * mean_update)
        return self.lr * (m / (sqrt(v) + self.tau)), state.after_step(m=m, v=v)


@register("server_optimiser", "adagrad")
@dataclass(frozen=True, kw_only=True)
class Adagrad(Adaptive):
    """Adagrad on the server: v <- v + d^2.

    Args:
        lr: server learning rate, at least 0.
        beta1: weight of the last first moment m, in [0, 1). The paper's experiments use 0.
        tau: positive; bounds the step where updates are small. v starts at tau^2.
    """

    beta1: float = 0.0

    def second_moment(self, v: Params, square: Params) -> Params:
        return v + square


@register("server_optimiser", "adam")
@dataclass(frozen=True, kw_only=True)
class Adam(Adaptive):
    """Adam on the server: v <- beta2 v + (1 - beta2) d^2.

    Args:
        lr: server learning rate, at least 0.
        beta1: weight of the last first moment m, in [0, 1).
        beta2: weight of the last second moment v, in [0, 1].
        tau: positive; bounds the step where updates are small. v starts at tau^2.
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        within("[0, 1]", beta2=self.beta2)

    def second_moment(self, v: Params, square: Params) -> Params:
        return self.beta2 * v + (1 - self.beta2) * square


@register("server_optimiser", "yogi")
@dataclass(frozen=True, kw_only=True)
class Yogi(Adam):
    """Yogi on the server: v <- v - (1 - beta2) d^2 sign(v - d^2); v stays at least 0.

    Args:
        lr: server learning rate, at least 0.
        beta1: weight of the last first moment m, in [0, 1).
        beta2: v moves by at most (1 - beta2) d^2 in a round; in [0, 1].
        tau: positive; bounds the step where updates are small. v starts at tau^2.
    """

    def second_moment(self, v: Params, square: Params) -> Params:
        return v - (1 - self.beta2) * (square * sign(v - square))


@register("server_optimiser", "pseudo_gradient")
@dataclass(frozen=True, kw_only=True)
class PseudoGradient(ServerOptimiser):
    """A step of a local optimiser on the server, along the gradient -d. Adam has bias correction here.

    Args:
        optimiser: `sgd` or `adam`, with their momentum and weight decay. `torch` is refused: its state cannot be saved.
        lr: server learning rate, at least 0.
    """

    optimiser: Optimiser = field(default_factory=LocalAdam)
    lr: float = 1.0

    def __post_init__(self) -> None:
        not_negative(lr=self.lr)
        if not self.optimiser.batched:
            raise ValueError("optimiser: 'torch' has a state that no checkpoint can hold; use sgd or adam")

    def init(self, params: Params) -> OptimiserState:
        return OptimiserState(self.optimiser.state(params))

    def change(self, params: Params, mean_update: Params, state: OptimiserState) -> tuple[Params, OptimiserState]:
        after, state = self.step(params, mean_update, state)
        return after - params, state

    def step(
        self, params: Params, mean_update: Params, state: OptimiserState, lr: float = 1.0
    ) -> tuple[Params, OptimiserState]:
        after, moments = params.clone(), {name: moment.clone() for name, moment in state.moments.items()}
        self.optimiser.step(after, -mean_update, moments, self.lr * lr, state.steps)
        return after, state.after_step(**moments)
