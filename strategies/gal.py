"""GAL (gradient assisted learning): boosting in which all parties fit the same residuals on their own columns.

    F_0 = log class frequencies (of numbers: their mean);   in each round, with the loss L of the active party:
    r = -dL/dF (n, K);   every party p fits f_p to r by squared error
    w = argmin |r - sum_p w_p f_p|^2  over the simplex;   eta = argmin_{eta >= 0} L(F + eta sum_p w_p f_p)
    F <- F + eta sum_p w_p f_p

Diao, Ding, Tarokh 2022, arXiv:2106.01425. For softmax cross-entropy r = onehot(y) - softmax(F). The step eta may be 0,
so the training loss never rises. Passive parties get no labels and no weights of others, and send only fits. Bytes of a
round: (P - 1) n K b each way, for n training rows, K outputs and b bytes per number.
Differs from the paper: w is the exact minimiser on the simplex, by projected gradients, in place of a softmax that is
trained by gradient steps; eta comes from a golden-section search.
Equals FedAvg: no setting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl import (
    Broadcast,
    EvaluationGenerator,
    Exchange,
    Params,
    PerceptronFit,
    RoundGenerator,
    ServerContext,
    Stack,
    Strategy,
    perceptron,
    register,
)

from .party_model import answers, check_task, held_out, measured

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class State:
    """The ensemble.

    Attributes:
        base: F_0, (K,) float64.
        models: the active party's fit of each round.
        scales: eta w of each round, (P,) float64 each; the active party first.
        outputs: F of the training rows, (n, K) float64.
    """

    base: Tensor
    models: tuple[Params, ...]
    scales: tuple[Tensor, ...]
    outputs: Tensor


def simplex_projection(v: np.ndarray) -> np.ndarray:
    """Return the nearest point with elements >= 0 that add up to 1.

    >>> simplex_projection(np.array([0.9, 0.3, -1.0])).round(6).tolist()
    [0.8, 0.2, 0.0]
    """
    falling = np.sort(v)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(v) + 1)
    return np.maximum(v - excess[np.flatnonzero(falling > excess)[-1]], 0)


def simplex_weights(residual: Tensor, fits: list[Tensor], steps: int = 2000) -> np.ndarray:
    """Return w (P,) that minimises |residual - sum_p w_p fits_p|^2 over the simplex, by projected gradients.

    >>> ones = torch.ones(2, 1)
    >>> simplex_weights(1.5 * ones, [ones, 2 * ones]).round(6).tolist()
    [0.5, 0.5]
    """
    columns = torch.stack([fit.double().flatten() for fit in fits])
    gram, right = (columns @ columns.T).numpy(), (columns @ residual.double().flatten()).numpy()
    rate = 1 / max(float(np.linalg.eigvalsh(gram)[-1]), 1e-300)
    w = np.full(len(fits), 1 / len(fits))
    for _ in range(steps):
        w = simplex_projection(w - rate * (gram @ w - right))
    return w


def line_search(loss: Callable[[float], float], steps: int = 60) -> float:
    """Return eta >= 0 near the minimum of a convex function; 0 if it is nowhere smaller than at 0.

    >>> round(line_search(lambda eta: (eta - 3.0) ** 2), 6), line_search(lambda eta: eta)
    (3.0, 0.0)
    """
    first, high = loss(0.0), 1.0
    while loss(2 * high) < loss(high) and high < 2**20:
        high *= 2
    a, b = 0.0, 2 * high
    for _ in range(steps):
        left, right = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
        a, b = (a, right) if loss(left) < loss(right) else (left, b)
    eta = (a + b) / 2
    return eta if loss(eta) < first else 0.0


def predict_config(client: int, scales: Tensor, view: str) -> dict[str, Any]:
    """Return what a passive party needs for predictions: the view, and its scale in each round."""
    return {"view": view, "scales": scales[:, client + 1].tolist()}


@register("strategy", "gal")
@dataclass(frozen=True, kw_only=True)
class GAL(PerceptronFit, Strategy):
    """Gradient assisted learning: an additive model of all parties, one term per round.

    The arguments are those of the active party's fits; the passive parties have their own, such as `client.hidden`.
    """

    client: ClassVar[str] = "gal"
    axis: ClassVar[Literal["rows", "columns"]] = "columns"
    later_metrics: ClassVar[tuple[str, ...]] = ("eval/*", "val/*")
    example_config: ClassVar[Mapping[str, Any]] = {
        "partition": {"name": "vertical", "parties": 3},
        "cohort.size": 2,
        "strategy.epochs": 2,
    }

    def init(self, model: Params, ctx: ServerContext) -> State:
        check_task(ctx)
        y = ctx.server["y"]
        if y.is_floating_point():
            base = y.double().reshape(len(y), -1).mean(0)
        else:
            base = (torch.bincount(y, minlength=ctx.outputs).double().clamp(min=0.5) / len(y)).log()
        return State(base, (), (), base.expand(len(y), -1).clone())

    def model(self, state: State) -> Params:
        terms = {f"{t}.{name}": w for t, model in enumerate(state.models) for name, w in model.items()}
        return Params.of({"base": state.base.float(), **terms})

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        rows, address = ctx.server, (ctx.seed, "active", ctx.round, "gal")

        def total(outputs: Tensor) -> Tensor:
            return ctx.task.loss(outputs, rows).sum()

        outputs = state.outputs.clone().requires_grad_()
        residual = -torch.autograd.grad(total(outputs), outputs)[0].float()
        answer = yield Exchange(Broadcast({"residual": residual}), {"fit": Stack()}, work="fit")
        passive = answers(answer.value and answer.value["fit"], ctx)
        model = self.fit(rows["x"], residual, *address)
        with torch.no_grad():
            fits = [perceptron.outputs(model, rows["x"]), *passive]
            w = simplex_weights(residual, fits)
            direction = torch.stack([float(a) * fit.double() for a, fit in zip(w, fits)]).sum(0)
            eta = line_search(lambda eta: float(total(state.outputs + eta * direction)))
            after = state.outputs + eta * direction
            loss = float(total(after)) / len(after)
        scales = torch.from_numpy(eta * w)
        metrics = {"train/loss": loss, "eta": eta, **{f"weight{p}": float(a) for p, a in enumerate(w)}}
        return State(state.base, (*state.models, model), (*state.scales, scales), after), metrics

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        found: dict[str, float] = {}
        scales = torch.stack(state.scales)
        for view, prefix, rows in held_out(ctx):
            down = Broadcast(config=functools.partial(predict_config, scales=scales, view=view))
            answer = yield Exchange(down, {"fit": Stack()}, work="predict", free=True)
            parts = answers(answer.value and answer.value["fit"], ctx)
            with torch.no_grad():
                terms = zip(state.scales, state.models)
                own = [float(a[0]) * perceptron.outputs(model, rows["x"]) for a, model in terms]
                outputs = torch.stack([*own, *parts]).double().sum(0) + state.base
            found |= measured(ctx, outputs, rows, prefix)
            found[f"{prefix}/inference_bytes"] = sum(part.nbytes for part in parts)
        return found
