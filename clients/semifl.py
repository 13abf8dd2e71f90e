"""SemiFL's client: it labels all its rows once with the received model, then trains on the sure ones.

    y_i = argmax f(w; x_i),   kept if max softmax f(w; x_i) >= threshold
    loss = cross-entropy(f(A(x_i)), y_i) + mix * (lam cross-entropy(f(z), y_i) + (1 - lam) cross-entropy(f(z), y_j))
    z = lam a(x_i) + (1 - lam) a(x_j),    lam ~ Beta(alpha, alpha)

a is the weak chain of augmentations (`data.augment`), A the strong one (`data.strong`), j another kept row.
Diao, Ding, Tarokh 2022, arXiv:2106.01432.  The client's weight is its number of kept rows; with none it sends an update
of zero with weight zero.  Virtual time books all rows as kept.
Differs from the paper: lam is drawn for each row and round, not for each batch; j is drawn among the kept rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from fl import Batch, Beside, ClientContext, LocalTraining, Phase, StepContext, Task, View, checks, random, register

from .measure import BLOCK


@register("client", "semifl")
@dataclass(frozen=True, kw_only=True)
class SemiFL(LocalTraining):
    """Steps on pseudo-labels of the received model and on mixtures of two samples.

    Args:
        threshold: least probability of a pseudo-label, positive. Above 1, no row has a pseudo-label.
        mix: weight of the loss of mixtures, at least 0.
        alpha: parameter of the Beta distribution of the mixtures' shares, positive.
    """

    threshold: float = 0.95
    mix: float = 1.0
    alpha: float = 0.75

    classes_only: ClassVar[bool] = True
    example_config: ClassVar[dict[str, Any]] = {"client.threshold": 1e-6}  # every row, as virtual time books

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(threshold=self.threshold, alpha=self.alpha)
        checks.not_negative(mix=self.mix, hint="0 leaves mixtures out")

    def samples(self, ctx: ClientContext) -> View:
        """Return the rows with a sure pseudo-label `y`, and `lam`, the first sample's share of a mixture."""
        x = ctx.unlabelled.take()["x"]
        net = ctx.net(self.start(self.inputs(ctx)))
        with torch.no_grad():
            p = torch.cat([net(block).softmax(-1) for block in torch.split(x, BLOCK)])
        surest, label = p.max(-1)
        words = random.hash64(ctx.seed, ctx.client, ctx.participation, "mix", ctx.unlabelled.rows)
        lam = torch.as_tensor(betaincinv(self.alpha, self.alpha, random.uniform(words)), dtype=x.dtype, device=x.device)
        kept = np.flatnonzero((surest >= self.threshold).cpu().numpy())
        return View({"x": x, "y": label, "lam": lam}, kept)

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        beside = {"other": Beside("train", batch=self.batch)} if self.mix else {}
        return (replace(phase, changes={"x": "weak", "strong": "strong"}, beside=beside),)

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        return super().workload_of_views(unlabelled, np.zeros_like(unlabelled), round_, rounds, name)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        loss = task.loss(net(batch["strong"]), batch)
        if not self.mix:
            return loss
        x, lam = batch["x"], batch["lam"]
        share = lam.view(-1, *[1] * (x.ndim - 1))
        outputs = net(share * x + (1 - share) * batch["other/x"][: len(x)])
        one, other = task.loss(outputs, batch), task.loss(outputs, {"y": batch["other/y"][: len(x)]})
        return loss + self.mix * (lam * one + (1 - lam) * other)
