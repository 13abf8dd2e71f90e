"""Optimisers for local training, and learning-rate schedules.

An optimiser changes flat `Params` in place, of one client or of C clients at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fl.checks import at_least, not_negative, one_of, within
from fl.registry import register
from fl.tensors.params import Params, zeros_like


@dataclass(frozen=True, kw_only=True)
class LRSchedule:
    """A learning rate over rounds or over local steps: lr(t) = start * f(t) * min(1, (t + 1) / warmup).

    constant: f = 1     cosine: f = (1 + cos(pi x)) / 2     linear: f = 1 - x      step: f = factor ** floor(t / every)

    t is the round or the local step, from 0, and x = min(t / over, 1).

    >>> [LRSchedule(start=0.8, schedule="step", every=2, factor=0.5).at(t) for t in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    >>> [LRSchedule(start=1.0, schedule="linear", warmup=2).at(t, length=4) for t in range(5)]
    [0.5, 0.75, 0.5, 0.25, 0.0]

    Args:
        start: learning rate at t = 0 without warm-up, at least 0.
        schedule: how the rate falls: "constant"; "cosine" and "linear" to 0 at `over`; "step": it is multiplied by
            `factor` at every multiple of `every`.
        every: rounds or steps between two drops of "step", at least 1.
        factor: multiplier of each drop of "step", at least 0.
        by: t counts rounds of the run ("round"), or local steps from the start of each local training ("step").
        over: t at which "cosine" and "linear" reach 0, at least 1. Default: the number of rounds. Needed with
            by: step.
        warmup: number of rounds or steps with a rising rate, at least 0.
    """

    start: float
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    every: int = 1
    factor: float = 1.0
    by: Literal["round", "step"] = "round"
    over: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        not_negative(start=self.start, factor=self.factor, warmup=self.warmup)
        at_least(1, every=self.every, over=self.over)
        if self.by == "step" and self.over is None and self.schedule in ("cosine", "linear"):
            raise ValueError(f"over: missing; with by=step, {self.schedule} needs the step at which it reaches 0")

    def at(self, t: int, length: int = 1) -> float:
        """Return the learning rate at round or step t. `length` replaces `over` if that is None."""
        x = min(t / max(self.over or length, 1), 1.0)
        shape = {
            "constant": 1.0,
            "cosine": (1 + math.cos(math.pi * x)) / 2,
            "linear": 1 - x,
            "step": self.factor ** (t // self.every),
        }
        warm = min(1.0, (t + 1) / self.warmup) if self.warmup else 1.0
        return self.start * shape[self.schedule] * warm


class Optimiser:
    """Base of optimisers. Subclasses are frozen dataclasses of hyper-parameters.

    Attributes:
        batched: whether `step` also takes `Params` of C clients, with the same arithmetic.
    """

    batched: ClassVar[bool] = True

    def state(self, params: Params) -> dict[str, Any]:
        """Return the optimiser's memory before the first step on `params`."""
        return {}

    def step(self, params: Params, grad: Params, state: dict[str, Any], lr: float, t: int) -> None:
        """Take one step, in place on `params` and `state`.

        Args:
            params: the parameters.
            grad: the gradient, of the same layout.
            state: the optimiser's memory.
            lr: learning rate of this step.
            t: number of steps that `state` remembers; the number of the step in its phase, from 0, unless the memory
                lasts from round to round (`optimiser_state`).
        """
        raise NotImplementedError


@register("optimiser", "sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(Optimiser):
    """Stochastic gradient descent, with momentum and weight decay if they are not 0.

    d = g + weight_decay w;  v <- momentum v + d (v = 0 at first);  w <- w - lr v  (Nesterov: w - lr (d + momentum v))

    >>> params, grad = (Params.of({"w": torch.tensor([value])}) for value in (1.0, 0.5))
    >>> sgd = SGD(momentum=0.9)
    >>> state = sgd.state(params)
    >>> for t in range(2):
    ...     sgd.step(params, grad, state, lr=1.0, t=t)
    ...     print(round(float(params["w"]), 4))
    0.5
    -0.45

    Args:
        momentum: weight of the last velocity v, at least 0; 0 is plain SGD.
        nesterov: whether the step looks ahead along the velocity.
        weight_decay: strength of the L2 penalty weight_decay / 2 |w|^2, at least 0.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        not_negative(momentum=self.momentum, weight_decay=self.weight_decay)

    def state(self, params: Params) -> dict[str, Any]:
        return {"velocity": zeros_like(params)} if self.momentum else {}

    def step(self, params: Params, grad: Params, state: dict[str, Any], lr: float, t: int) -> None:
        if self.weight_decay:
            grad = grad + self.weight_decay * params
        if self.momentum:
            velocity = state["velocity"].mul_(self.momentum).add_(grad)
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        params.add_(grad, alpha=-lr)


@register("optimiser", "adam")
@dataclass(frozen=True, kw_only=True)
class Adam(Optimiser):
    """Adam, with decoupled weight decay.

    m <- b1 m + (1 - b1) g;    v <- b2 v + (1 - b2) g^2;    w <- w - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)

    in step k = 1, 2, ..., after w <- (1 - lr weight_decay) w.  Kingma, Ba 2015, arXiv:1412.6980. The weight decay is
    AdamW's: Loshchilov, Hutter 2019, arXiv:1711.05101.

    >>> params, grad = (Params.of({"w": torch.tensor([value])}) for value in (1.0, 4.0))
    >>> adam = Adam()
    >>> adam.step(params, grad, adam.state(params), lr=0.1, t=0)  # the first step is lr * sign(g)
    >>> round(float(params["w"]), 4)
    0.9

    Args:
        beta1: weight of the last first moment m, in [0, 1).
        beta2: weight of the last second moment v, in [0, 1).
        eps: at least 0; bounds the step where gradients are small.
        weight_decay: fraction of w that a step removes, per unit of learning rate; at least 0.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        within("[0, 1)", beta1=self.beta1, beta2=self.beta2)
        not_negative(eps=self.eps, weight_decay=self.weight_decay)

    def state(self, params: Params) -> dict[str, Any]:
        return {"m": zeros_like(params), "v": zeros_like(params)}

    def step(self, params: Params, grad: Params, state: dict[str, Any], lr: float, t: int) -> None:
        if self.weight_decay:
            params.mul_(1 - lr * self.weight_decay)
        rate = lr / (1 - self.beta1 ** (t + 1))
        correction = math.sqrt(1 - self.beta2 ** (t + 1))
        for w, g, m, v in zip(params.buffers, grad.buffers, state["m"].buffers, state["v"].buffers):
            m.lerp_(g, 1 - self.beta1)
            v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            w.addcdiv_(m, v.sqrt().div_(correction).add_(self.eps), value=-rate)


@register("optimiser", "torch")
@dataclass(frozen=True, kw_only=True)
class Torch(Optimiser):
    """An optimiser of torch.optim, such as {name: torch, cls: RMSprop, options: {alpha: 0.9}}.

    It works tensor by tensor, with one object per client and phase. So it is slower than `SGD` and `Adam`, and clients
    cannot be trained together.

    Args:
        cls: name of a class of torch.optim.
        options: arguments of this class, without `lr`.
    """

    batched: ClassVar[bool] = False
    cls: str
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        one_of([name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)], cls=self.cls)

    def state(self, params: Params) -> dict[str, Any]:
        views = [params[name] for name in params]
        return {"views": views, "optimiser": getattr(torch.optim, self.cls)(views, **(self.options or {}))}

    def step(self, params: Params, grad: Params, state: dict[str, Any], lr: float, t: int) -> None:
        for view, name in zip(state["views"], grad):
            view.grad = grad[name]
        for group in state["optimiser"].param_groups:
            group["lr"] = lr
        state["optimiser"].step()
