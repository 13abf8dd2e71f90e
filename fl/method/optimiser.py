"""Optimisers for local training and their learning-rate schedules.

An optimiser works in place on flat `Params`, for one client or many alike; `t` counts its steps from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fl.registry import register
from fl.tensors.params import Params, zeros_like


@dataclass(frozen=True, kw_only=True)
class LRSchedule:
    """A learning rate over the rounds of a run, or over the steps of each local training: start * f(x), x = t / over.

    cosine: (1 + cos(pi x)) / 2.   linear: 1 - x.   step: factor ** floor(t / every).   constant: 1.

    t: the round, or (`by: step`) the step in a client's round, from 0. over: where cosine and linear reach 0 (default: all
    rounds; by step it has to be given). In the first `warmup` of them the rate is (t + 1) / warmup of that.
    """

    start: float
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    every: int = 1
    factor: float = 1.0
    by: Literal["round", "step"] = "round"
    over: int | None = None
    warmup: int = 0

    def __post_init__(self):
        for name, least in (("start", 0), ("every", 1), ("factor", 0), ("over", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: {value} is less than {least}")
        if self.by == "step" and self.over is None and self.schedule in ("cosine", "linear"):
            raise ValueError(f"over: missing; by step, {self.schedule} has to be told after how many steps it ends")

    def at(self, t: int, length: int = 1) -> float:
        """The rate at round or step t; `length`: where it ends unless `over` says so."""
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
    """Base: `state` for fresh parameters, then `step` in place. `batched`: rows of clients may be stacked."""

    batched: ClassVar[bool] = True

    def state(self, params: Params) -> dict[str, Any]:
        return {}

    def step(self, params: Params, grad: Params, state: dict[str, Any], lr: float, t: int) -> None:
        raise NotImplementedError


@register("optimiser", "sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(Optimiser):
    """w <- w - lr * d,   d = g + weight_decay * w;   with momentum m:  v <- m v + d (v = d at first),  d <- v
    (Nesterov: d <- d + m v)."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def state(self, params):
        return {"velocity": zeros_like(params)} if self.momentum else {}

    def step(self, params, grad, state, lr, t):
        if self.weight_decay:
            grad = grad + self.weight_decay * params
        if self.momentum:
            velocity = state["velocity"].mul_(self.momentum).add_(grad)
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        params.add_(grad, alpha=-lr)


@register("optimiser", "adam")
@dataclass(frozen=True, kw_only=True)
class Adam(Optimiser):
    """m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  w <- w - lr * (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps).

    Kingma, Ba 2015, arXiv:1412.6980. `weight_decay` is decoupled (AdamW, Loshchilov, Hutter 2019): w <- (1 - lr wd) w.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def state(self, params):
        return {"m": zeros_like(params), "v": zeros_like(params)}

    def step(self, params, grad, state, lr, t):
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
    """Any optimiser of torch.optim by class name, with its own arguments: {name: torch, cls: RMSprop, options: {...}}.

    One object per client and phase, tensor by tensor: slower than the built-in ones, and never batched.
    """

    batched: ClassVar[bool] = False
    cls: str
    options: dict[str, Any] | None = None

    def __post_init__(self):
        if not hasattr(torch.optim, self.cls):
            names = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type)]
            raise ValueError(f"cls: {self.cls!r} is not one of {names}")

    def state(self, params):
        views = [params[name] for name in params]
        return {"views": views, "optimiser": getattr(torch.optim, self.cls)(views, **(self.options or {}))}

    def step(self, params, grad, state, lr, t):
        for view, name in zip(state["views"], grad):
            view.grad = grad[name]
        for group in state["optimiser"].param_groups:
            group["lr"] = lr
        state["optimiser"].step()
