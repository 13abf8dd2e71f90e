"""FedRAP: scores from the sum of a shared and a private table of items.    score(u, i) = w_u . (D_ui + C_i) + b_u

    L = mean BCE(score, y) - lam mean (D_b - C_b)^2 + mu norm(C_b)      D_b, C_b: the rows (B, d) of a batch
    step t of round r: rate = lr round_decay^r step_decay^t, times `rates` for both tables

C is shared, D, w and b stay with the user. Means run over rows and columns of the batch, repeated items included. Li,
Long, Zhou 2023, arXiv:2301.09109; the loss and the schedules are those of the authors' program, not the paper's text.
lam and mu are multiplied by the `curriculum` that the server sends (`strategies/fedrap.py`).

    norm: l1 mean |C_b|;  l2 sqrt(mean C_b^2);  nuclear: singular values of C_b, their sum / (B d);  max: max |C_b|

-lam mean (D_b - C_b)^2 has no lower bound, so training can diverge: a table with an entry above `bound` stops the run.
Differs from the program: weight decay acts on rows of the batch; no early stop; all users start from the same D, w.
Equals: with D = 0 fixed (`model.freeze: [scorer.items.weight]`, own_std=0), lam = mu = 0: FedMF with a bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Extended,
    LRSchedule,
    Phase,
    Reply,
    StepContext,
    Task,
    View,
    checks,
    register,
)

from .recommendation import Recommendation, item_table

Norm = Literal["l1", "l2", "nuclear", "max"]


def loss(outputs: Tensor, y: Tensor, own: Tensor, shared: Tensor, lam: float, mu: float, kind: Norm = "l1") -> Tensor:
    """Return the loss of a batch, ().

    Args:
        outputs: scores (B,).
        y: 1 for items that the user took, else 0, (B,).
        own: rows D_b of the user's table, (B, d).
        shared: rows C_b of the shared table, (B, d).
        lam: weight of the distance between the tables.
        mu: weight of the norm of the shared rows.
        kind: the norm.

    >>> zero = torch.zeros(2)
    >>> round(float(loss(zero, zero, torch.ones(2, 3), torch.zeros(2, 3), lam=0.5, mu=1.0)), 4)  # log 2 - 0.5
    0.1931
    """
    value = F.binary_cross_entropy_with_logits(outputs, y)
    if lam:
        value = value - lam * (own - shared).square().mean()
    return value + mu * row_norm(shared, kind) if mu else value


def row_norm(rows: Tensor, kind: Norm) -> Tensor:
    """Return the norm of rows (B, d), a tensor (); see the module.

    >>> rows = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    >>> [round(float(row_norm(rows, kind)), 4) for kind in ("l1", "l2", "nuclear", "max")]
    [1.75, 2.5, 1.75, 4.0]
    """
    if kind == "l1":
        return rows.abs().mean()
    if kind == "l2":
        return rows.square().mean().sqrt()
    return rows.abs().max() if kind == "max" else torch.linalg.svdvals(rows).sum() / rows.numel()


class Additive(nn.Module):
    """A user's table, weight and bias.

    Args:
        items: number of items.
        dim: numbers in a row.
        own_std: standard deviation of the first values of the table; 0 starts it at 0.
    """

    def __init__(self, items: int, dim: int, own_std: float):
        super().__init__()
        self.items = nn.Embedding(items, dim)
        nn.init.normal_(self.items.weight, std=own_std)
        self.weight = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(()))


class WithAdditive(Extended):
    """A shared table of items, and a user's table, weight and bias: ids (...) -> scores (...)."""

    def forward(self, x: Tensor, tables: bool = False) -> Any:
        """Return the scores (...) of ids (...); with `tables` also the own and the shared rows (..., d)."""
        shared, own = self.original(x), self.added.items(x)
        scores = (own + shared) @ self.added.weight + self.added.bias
        return (scores, own, shared) if tables else scores


@register("client", "fedrap")
@dataclass(frozen=True, kw_only=True)
class FedRAP(Recommendation):
    """Scores from the sum of a shared and a private table of items.

    Args:
        epochs: passes over the samples per round, positive.
        batch: samples per step, positive.
        lr: learning rate of w and b in step 0 of round 0, at least 0.
        rates: factors of the learning rate; the tables take 400 (0.5 x 400 = 200).
        weight_decay: strength of the L2 penalty weight_decay / 2 |w|^2, at least 0.
        lam: weight of the distance between the tables, at least 0.
        mu: weight of the norm of the shared rows, at least 0.
        norm: l1, l2, nuclear or max.
        step_decay: factor of the rates after each step, in (0, 1].
        round_decay: factor of the rates after each round, in (0, 1].
        own_std: standard deviation of the first values of the private table, at least 0.
        bound: largest absolute value in a table, positive; above it, training has diverged.
        on_diverge: `raise` stops the run, `keep` goes on.
    """

    epochs: int | float | None = 10  # noqa: PYI041  # as in LocalTraining
    batch: int | Literal["full"] = 2048
    lr: float | LRSchedule = 0.5
    rates: dict[str, float] | None = field(default_factory=lambda: {"*items.weight": 400.0})
    weight_decay: float = 1e-4
    lam: float = 0.1
    mu: float = 0.1
    norm: Norm = "l1"
    step_decay: float = 0.95
    round_decay: float = 0.97
    own_std: float = 0.1
    bound: float = 1e4
    on_diverge: Literal["raise", "keep"] = "raise"

    receives: ClassVar[tuple[str, ...]] = ("model", "curriculum")
    loss_over_batch: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = ("scorer.items.weight",)
    example_config: ClassVar[Mapping[str, Any]] = {"client.rates": {"*items.weight": 4.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(lam=self.lam, mu=self.mu, own_std=self.own_std)
        checks.positive(bound=self.bound)
        checks.within("(0, 1]", step_decay=self.step_decay, round_decay=self.round_decay)
        checks.one_of(("l1", "l2", "nuclear", "max"), norm=self.norm)
        checks.one_of(("raise", "keep"), on_diverge=self.on_diverge)
        if isinstance(self.lr, LRSchedule):
            raise ValueError("lr: a schedule; fedrap has its own, step_decay and round_decay; give a number")

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        table = item_table(module)
        return WithAdditive(module, "scorer", Additive(table.num_embeddings, table.embedding_dim, self.own_std))

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        lr = phase.lr * self.round_decay**round_
        decay = LRSchedule(start=lr, schedule="step", factor=self.step_decay, by="step")
        return (replace(phase, lr=lr, decay=decay),)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        scores, own, shared = net(batch["x"], tables=True)
        weight = at.config["curriculum"]
        return loss(scores, batch["y"], own, shared, weight * self.lam, weight * self.mu, self.norm)

    def train(self, ctx: ClientContext, samples: View) -> Reply:
        reply = super().train(ctx, samples)
        if self.on_diverge == "raise":
            tables = reply.update.groups["model"], reply.state["own"]
            largest = max(float(params[name].abs().max()) for params in tables for name in params)
            if not largest <= self.bound:
                raise ValueError(
                    f"client: training has diverged, the largest entry is {largest:.3g} (bound: {self.bound:g}); lower "
                    "lam, lr or rates, raise weight_decay, or set on_diverge: keep"
                )
        return reply
