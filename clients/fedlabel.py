"""FedLabel's client: the surer of the local and the received model gives each pseudo-label.    per unlabelled step

    p_l = softmax f(w_k; a(x)),   p_g = softmax f(w; a(x)),   both without gradient;   e = argmax(h(p_l), h(p_g))
    L_u = mean [max p_e >= threshold] * cross-entropy(f(w_k; A(x)), argmax p_e)
    L_c = mean s * KL(p_g || softmax f(w_k; a(x))),           s = [argmax p_l = argmax p_g]
    loss = L_u + agreement * mean(s) * L_c

w is the received model, w_k the current local one; h is how sure a model is (`confidence`); a tie goes to the local
model.  The steps before are gradient steps on the labels (`clients/semi_supervised.py`).
Cho, Joshi, Dimitriadis 2023, arXiv:2307.08809.  The paper's setting: steps=5, unlabelled_steps=5, batch=20, lr=.05.
Differs from the paper, which has no public program: the weight of L_c grows with the share of agreeing samples, p_l
is that of the current local model, and the received model predicts without Dropout.
Equals FedAvg: threshold above 1, agreement=0, weight_view=train, equal bits in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from fl import Batch, StepContext, Task, checks, register

from .fedlwf import distillation
from .semi_supervised import WithThreshold, pseudo_label_losses

Confidence = Literal["variance", "entropy", "max"]


def confidence(probabilities: Tensor, kind: Confidence = "variance") -> Tensor:
    """Return how sure probabilities (B, C) are, (B,): the larger, the surer.

    "variance" is the population variance of the C entries, "entropy" minus the entropy (nats), "max" the largest entry.

    >>> confidence(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist()
    [0.25, 0.0]
    """
    if kind == "variance":
        return probabilities.var(-1, correction=0)
    return torch.xlogy(probabilities, probabilities).sum(-1) if kind == "entropy" else probabilities.amax(-1)


def surer(local: Tensor, received: Tensor, kind: Confidence = "variance") -> Tensor:
    """Return for each sample the probabilities of the surer model, from two (B, C). A tie goes to the local one."""
    choose_local = confidence(local, kind) >= confidence(received, kind)
    return torch.where(choose_local[:, None], local, received)


@register("client", "fedlabel")
@dataclass(frozen=True, kw_only=True)
class FedLabel(WithThreshold):
    """Steps on labels, then on pseudo-labels from the surer of the local and the received model.

    Args:
        agreement: largest weight of the distance between both models where they agree, at least 0.
        confidence: how sure a model is: "variance" of its probabilities, "entropy" (negative), or "max".
    """

    agreement: float = 1.0
    confidence: Confidence = "variance"

    loss_over_batch: ClassVar[bool] = True  # mean(s) is the batch's
    example_config: ClassVar[dict[str, Any]] = {**WithThreshold.example_config, "client.unlabelled_batch": 4}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(agreement=self.agreement, hint="0 leaves the term out")
        checks.one_of(get_args(Confidence), confidence=self.confidence)

    def unlabelled_loss(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        with torch.set_grad_enabled(self.agreement > 0):
            outputs = net(batch["x"])
        theirs = self.received_outputs(batch["x"], at)
        local, received = outputs.detach().softmax(-1), theirs.softmax(-1)
        chosen = surer(local, received, self.confidence)
        losses = pseudo_label_losses(task, net(batch["strong"]), chosen, self.threshold)
        if not self.agreement:
            return losses
        agree = (local.argmax(-1) == received.argmax(-1)).to(losses.dtype)
        return losses + self.agreement * agree.mean() * agree * distillation(outputs, theirs, 1.0)

    def unlabelled_gradients(self) -> int:
        return 2 if self.agreement else 1
