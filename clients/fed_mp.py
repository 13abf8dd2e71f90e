"""Fed-MP's client: a small gate over frozen features, and a residual of the descriptions of the client's own classes.

    v' = gate(v),    t'_c = t_c + alpha r_c    (divided by their norms)
    loss = 1/2 (CE over the batch's descriptions for each v'  +  CE over the batch's v' for each description)

v are features of samples, t_c of class descriptions, both by one frozen encoder (`data: embedded`, `model: gate`).
The logits are scale <v', t'>.  Samples of one class count as each other's negatives, unless `mask` is set.  The client
sends the change of the gate, and t'_c of its own classes, (C_k, D); r is the part `residual` of the model, not sent.
Zeng, Yue, Wang 2024, arXiv:2404.01232.
Differs from the authors' program: r starts in each round from the same draw from U(-residual, residual); theirs is
U(-5, 5), larger than any description; it is drawn in each round.  The gate of the last epoch is sent, not that of the
best one.
Equals FedAvg: no setting; there is no classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    Extended,
    LocalTraining,
    Params,
    StepContext,
    Task,
    TrainingInputs,
    TrainingResult,
    Tree,
    View,
    checks,
    first_rows,
    join,
    register,
)

RESIDUAL = "residual.rows"  # (C, D), one row for each class


class Rows(nn.Module):
    """A trained row for each class, drawn from U(-bound, bound)."""

    def __init__(self, classes: int, width: int, bound: float):
        super().__init__()
        self.rows = nn.Parameter(bound * (2 * torch.rand(classes, width) - 1))


class WithResidual(Extended):
    """A model of features with a residual for each class."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Return features (B, D), or features and residuals (B, D) of the classes y (B,)."""
        features = self.original(x)
        return features if y is None else (features, self.added.rows[y])


def pairs_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Return the losses (B,) of logits (B, B), whose diagonal has the pairs: half over rows, half over columns.

    Args:
        logits: scaled similarities of B samples and B descriptions.
        same: whether two samples have one class, (B, B); they are then no negatives of each other.

    >>> pairs_loss(torch.zeros(3, 3)).exp().round().tolist()
    [3.0, 3.0, 3.0]
    """
    if same is not None:
        logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -torch.inf)
    pairs = torch.arange(len(logits), device=logits.device)
    rows, columns = (F.cross_entropy(each, pairs, reduction="none") for each in (logits, logits.T))
    return (rows + columns) / 2


@register("client", "fed_mp")
@dataclass(frozen=True, kw_only=True)
class FedMP(LocalTraining):
    """Local training of a gate and of the residuals of own class descriptions.

    Args:
        alpha: weight of the residuals, at least 0. 0 does not change the descriptions. The paper takes 0.3.
        residual: bound of the residuals' first values, at least 0.
        mask: whether samples of one class are left out of each other's negatives.
    """

    alpha: float = 0.3
    residual: float = 0.05
    mask: bool = False

    sends: ClassVar[tuple[str, ...]] = ("model", "texts")
    receives: ClassVar[tuple[str, ...]] = ("model", "scale")
    loss_over_batch: ClassVar[bool] = True
    classes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(alpha=self.alpha, residual=self.residual)

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithResidual(module, "residual", Rows(outputs, sample_shape[0], self.residual))

    def facts(self, view: View, task: Task, outputs: int) -> Tree:
        """Return the client's classes (C_k,), ascending, and the features of their descriptions (C_k, D)."""
        rows = view.take()
        classes, first = first_rows(rows["y"])
        return {"classes": classes, "texts": rows["text"][first]}

    def start(self, inputs: TrainingInputs) -> Params:
        return join(inputs.received["model"], inputs.initial.trained.select([RESIDUAL]))

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        y = batch["y"]
        features, residual = net(batch["x"], y)
        texts = F.normalize(batch["text"] + self.alpha * residual, dim=-1)
        return pairs_loss(at.config["scale"] * features @ texts.T, y[:, None] == y if self.mask else None)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        classes, texts = end.facts["classes"], end.facts["texts"]
        adapted = F.normalize(texts + self.alpha * end.params[RESIDUAL][classes], dim=-1)
        return {"model": end.delta.select(list(end.received["model"])), "texts": adapted}, None
