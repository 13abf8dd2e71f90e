"""SAGE's client: soft targets between the pseudo-labels of the local and the received model.    per unlabelled step

    c_l, c_g: largest probabilities of the local and the received model for a(x), without gradient
    m = exp(-kappa |c_l - c_g|),   kappa = ln 2 / half
    target = m onehot_l + (1 - m) onehot_g  if c_l >= threshold,  else onehot_g
    loss = mean [c_l >= threshold or c_g >= threshold] * KL(target || softmax f(A(x)))

The steps before are gradient steps on the labels (`clients/semi_supervised.py`).
SAGE, CVPR 2025; the equations are those of the authors' program.
Equals FedAvg: threshold above 1, weight_view=train, equal bits in the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fl import Batch, StepContext, Task, checks, register

from .semi_supervised import WithThreshold


def soft_targets(local: Tensor, received: Tensor, threshold: float, half: float) -> tuple[Tensor, Tensor]:
    """Return (targets (B, C), whether they count (B,)) from the probabilities (B, C) of two models.

    >>> local, received = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.05, 0.95]])
    >>> targets, counts = soft_targets(local, received, threshold=0.8, half=0.05)
    >>> [round(value, 4) for value in targets[0].tolist()], counts.tolist()
    ([0.5, 0.5], [True])
    """
    (sure_l, label_l), (sure_g, label_g) = local.max(-1), received.max(-1)
    mix = torch.exp(-math.log(2) / half * (sure_l - sure_g).abs())
    mix = torch.where(sure_l >= threshold, mix, 0.0)[:, None]
    classes = local.shape[-1]
    targets = mix * F.one_hot(label_l, classes) + (1 - mix) * F.one_hot(label_g, classes)
    return targets, (sure_l >= threshold) | (sure_g >= threshold)


@register("client", "sage")
@dataclass(frozen=True, kw_only=True)
class SAGE(WithThreshold):
    """Steps on labels, then on mixed pseudo-labels of the local and the received model.

    Args:
        half: difference of the models' largest probabilities at which the local label has weight 1/2, positive.
    """

    half: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(half=self.half)

    def unlabelled_loss(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        with torch.no_grad():
            local = net(batch["x"]).softmax(-1)
        received = self.received_outputs(batch["x"], at).softmax(-1)
        targets, counts = soft_targets(local, received, self.threshold, self.half)
        entropy = torch.xlogy(targets, targets).sum(-1)  # negative; a constant that makes the loss a distance
        return (entropy - (targets * F.log_softmax(net(batch["strong"]), -1)).sum(-1)) * counts
