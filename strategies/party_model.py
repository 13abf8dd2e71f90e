"""The active party's part of a vertical model: a bottom perceptron on its own columns, and a top one on all parts.

    h_0 = bottom(x_0)          outputs = top(h_0 | h_1 | ... | h_P-1)          h_1 ... h_P-1: from the passive parties

Bottoms have no activation after their last layer. `splitnn`, `active_party` and `fedonce` build on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl import (
    Adam,
    ConfigError,
    LRSchedule,
    Metrics,
    Optimiser,
    Params,
    ServerContext,
    Strategy,
    aligned,
    auroc,
    checks,
    perceptron,
)


@dataclass(frozen=True)
class State:
    """The active party's parameters `bottom.*` and `top.*`, its optimiser, and what it has collected.

    Attributes:
        model: the parameters.
        optimiser: the optimiser's memory.
        steps: number of steps so far.
        collected: values (n, width) of all training rows, one per passive party; () if nothing is collected.
    """

    model: Params
    optimiser: dict[str, Params]
    steps: int = 0
    collected: tuple[Tensor, ...] = ()

    def copy(self) -> State:
        """Return a state whose parameters and optimiser may be changed in place."""
        memory = {name: moments.clone() for name, moments in self.optimiser.items()}
        return replace(self, model=self.model.clone(), optimiser=memory)


def measured(ctx: ServerContext, outputs: Tensor, rows: Mapping[str, Tensor], prefix: str) -> dict[str, float]:
    """Return the task's metrics of outputs (n, K) on rows, and `auroc` if there are two classes, by name."""
    everything = torch.zeros(len(outputs), dtype=torch.int64)
    found = {}
    for name, metric in ctx.task.metrics().items():
        (value,) = metric.each(metric.measure(outputs, rows, everything, 1), 1)
        found[f"{prefix}/{name}"] = float(value)
    if ctx.outputs == 2 and not rows["y"].is_floating_point() and rows["y"].ndim == 1:
        found[f"{prefix}/auroc"] = auroc(outputs[:, 1] - outputs[:, 0], rows["y"] == 1)
    return found


def held_out(ctx: ServerContext) -> list[tuple[Literal["val", "test"], str, Mapping[str, Tensor]]]:
    """Return (view, prefix of its metrics, the active party's rows) of the held-out views that have rows."""
    views: list[tuple[Literal["val", "test"], str, Mapping[str, Tensor]]] = [
        ("val", "val", ctx.val),
        ("test", "eval", ctx.test),
    ]
    return [view for view in views if view[2]]


def check_task(ctx: ServerContext) -> None:
    """Refuse a task whose loss is not one number per row for outputs (n, K).

    Raises:
        ConfigError: it is not.
    """
    few = {name: array[:2] for name, array in ctx.server.items()}
    try:
        shape = tuple(ctx.task.loss(torch.zeros(len(few["y"]), ctx.outputs), few).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError("task", f"{type(ctx.task).__name__} has no loss for one output vector per row: {error}")
    if shape != (len(few["y"]),):
        raise ConfigError("task", f"the loss of {len(few['y'])} rows has the shape {shape}; use classification")


def answers(values: Sequence[tuple[Any, Any]] | None, ctx: ServerContext) -> list[Any]:
    """Return what each passive party has sent, in their order.

    Raises:
        ValueError: a party has not answered.
    """
    found = {int(meta.client): value for value, meta in values or ()}
    missing = sorted(set(range(ctx.population)) - set(found))
    if missing:
        raise ValueError(
            f"the passive parties {missing} have not answered; a vertical model needs all of them. Do without "
            "system.availability, server.deadline_seconds and execution.on_client_error: drop"
        )
    return [found[party] for party in range(ctx.population)]


@dataclass(frozen=True, kw_only=True)
class PartyModel(Strategy):
    """Base of strategies whose active party trains a perceptron.

    Args:
        hidden: hidden units of the active party's bottom model.
        cut: outputs of each bottom model, positive.
        top: hidden units of the top model.
        optimiser: rule of a step of the active party.
        lr: learning rate, at least 0, or a schedule over rounds.
        batch: rows of a step, positive.
    """

    hidden: tuple[int, ...] = (100, 100)
    cut: int = 32
    top: tuple[int, ...] = (200,)
    optimiser: Optimiser = Adam(weight_decay=1e-5)
    lr: float | LRSchedule = LRSchedule(start=1e-3, schedule="step", every=10, factor=0.5)
    batch: int = 128

    axis: ClassVar[Literal["rows", "columns"]] = "columns"
    later_metrics: ClassVar[tuple[str, ...]] = ("eval/*", "val/*")

    def __post_init__(self) -> None:
        checks.positive(hidden=self.hidden, top=self.top, cut=self.cut, batch=self.batch)
        if not isinstance(self.lr, LRSchedule):
            checks.not_negative(lr=self.lr)
        elif self.lr.by == "step":
            raise ValueError("lr: a schedule by step starts again in each round; use by: round")
        if not self.optimiser.batched:
            raise ValueError("optimiser: the memory of torch's optimisers cannot be stored; use sgd or adam")

    # -- what methods differ in ---------------------------------------------------------------------------------------
    def passive_widths(self, ctx: ServerContext) -> list[int]:
        """Return the number of values that the top model gets from each passive party."""
        return [self.cut] * ctx.population

    # -- the model ----------------------------------------------------------------------------------------------------
    def init(self, model: Params, ctx: ServerContext) -> State:
        check_task(ctx)
        aligned.check_batches(len(ctx.server["y"]), self.batch)
        return self.first_state(int(np.prod(ctx.server["x"].shape[1:])), ctx)

    def first_state(self, columns: int, ctx: ServerContext) -> State:
        """Draw the model for an active party with this number of columns."""
        into_top = self.cut + sum(self.passive_widths(ctx))
        bottom = perceptron.first_weights((columns, *self.hidden, self.cut), ctx.generator("bottom"), "bottom.")
        top = perceptron.first_weights((into_top, *self.top, ctx.outputs), ctx.generator("top"), "top.")
        first = Params.of(bottom | top)
        return State(first, self.optimiser.state(first))

    def outputs(self, weights: Mapping[str, Tensor], x: Tensor, passive: Sequence[Tensor]) -> Tensor:
        """Return the outputs (n, K) from the active party's columns and the parts (n, width) of the passive parties."""
        return perceptron.outputs(weights, torch.cat([perceptron.outputs(weights, x, "bottom."), *passive], 1), "top.")

    def learn(
        self, state: State, batch: Mapping[str, Tensor], passive: Sequence[Tensor], ctx: ServerContext
    ) -> tuple[State, list[Tensor], Tensor]:
        """Take one step in place on the parameters; return (state, gradients for the passive parts, mean loss)."""
        weights = {name: tensor.detach().requires_grad_() for name, tensor in state.model.items()}
        leaves = [part.detach().requires_grad_() for part in passive]
        loss = ctx.task.loss(self.outputs(weights, batch["x"], leaves), batch).mean()
        gradients = torch.autograd.grad(loss, [*weights.values(), *leaves])
        gradient = Params.of(dict(zip(weights, gradients)))
        self.optimiser.step(state.model, gradient, state.optimiser, self.rate(ctx), state.steps)
        return replace(state, steps=state.steps + 1), list(gradients[len(weights) :]), loss.detach()

    def rate(self, ctx: ServerContext) -> float:
        """Return the learning rate of a round."""
        return self.lr.at(ctx.round, ctx.rounds) if isinstance(self.lr, LRSchedule) else self.lr

    def epoch(
        self, state: State, rows: Mapping[str, Tensor], passive: Sequence[Tensor], ctx: ServerContext
    ) -> tuple[State, Metrics]:
        """Train one pass over the rows with fixed parts of the passive parties; return (state, metrics)."""
        state, count, losses = state.copy(), len(rows["y"]), []
        for step in range(aligned.batches(count, self.batch)):
            at = torch.from_numpy(aligned.batch_rows(count, ctx.seed, ctx.round, step, self.batch).copy())
            batch = {name: array[at] for name, array in rows.items()}
            state, _, loss = self.learn(state, batch, [part[at] for part in passive], ctx)
            losses.append(loss)
        return state, {"train/loss": torch.stack(losses).mean()}

    @torch.no_grad()
    def predictions(self, state: State, x: Tensor, passive: Sequence[Tensor]) -> Tensor:
        """Return the outputs (n, K) without gradients."""
        return self.outputs(state.model, x, passive)
