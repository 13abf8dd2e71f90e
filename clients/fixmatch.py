"""FixMatch's client: one model gives each pseudo-label of the weakly changed sample.    per unlabelled step

    p = softmax f(a(x)) of the local model, or of the received one, without gradient
    loss = mean [max p >= threshold] * cross-entropy(f(A(x)), argmax p)

The steps before are gradient steps on the labels (`clients/semi_supervised.py`).
Sohn et al. 2020, arXiv:2001.07685.
Differs from the paper: labelled and unlabelled samples are in steps of their own, as in FedLabel.
Equals FedAvg: threshold above 1, weight_view=train, equal bits in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fl import Batch, StepContext, Task, checks, register

from .semi_supervised import WithThreshold, pseudo_label_losses


@register("client", "fixmatch")
@dataclass(frozen=True, kw_only=True)
class FixMatch(WithThreshold):
    """Steps on labels, then on pseudo-labels from one model.

    Args:
        expert: model that gives the pseudo-labels: "local" (the model being trained) or "received".
    """

    expert: Literal["local", "received"] = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("local", "received"), expert=self.expert)

    def unlabelled_loss(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        if self.expert == "received":
            outputs = self.received_outputs(batch["x"], at)
        else:
            with torch.no_grad():
                outputs = net(batch["x"])
        return pseudo_label_losses(task, net(batch["strong"]), outputs.softmax(-1), self.threshold)
