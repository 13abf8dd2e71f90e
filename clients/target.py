"""TARGET's client: local training on the labels of the present task, and on the old model's outputs for old classes.

    loss = mean_s CE(f(x_s)[c0 .. c1 - 1], y_s) + weight * mean_s KD(f_old(x~_s), f(x~_s))
    KD(t, z) = - sum_{c < c0} softmax(t / T)_c log softmax(z / T)_c        over the outputs of old classes only

c0 .. c1 - 1 are the classes of the present task; the first term is the loss of a masked stream.  x~ are images that
the server has made (`strategies/target.py`), f_old is the model at the end of the last task, in evaluation mode, and
T = 2.  A step has `batch` images.  In the first task there are none, and training is FedAvg's.
Zhang, Chen, Zhuang, Lv 2023, arXiv:2303.06937.
Differs from the paper: an epoch is one of the client's own samples, and images are cycled; images are not augmented.
Equals FedAvg: weight=0 of the strategy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fl import Batch, Beside, LocalTraining, Phase, StepContext, Task, image_bytes, register


def replay_loss(outputs: Tensor, old: Tensor, classes: int, temperature: float) -> Tensor:
    """Return the cross-entropy of softened outputs (B, K) and old outputs (B, K) over the first `classes`, (B,).

    >>> import torch
    >>> z = torch.tensor([[0.0, 0.0, 5.0]])
    >>> round(float(replay_loss(z, z, 2, 2.0)), 4)  # ln 2; the third class is new
    0.6931
    """
    target = F.softmax(old[..., :classes] / temperature, -1)
    return -(target * F.log_softmax(outputs[..., :classes] / temperature, -1)).sum(-1)


@register("client", "target")
@dataclass(frozen=True, kw_only=True)
class TARGET(LocalTraining):
    """Local training with replayed images; the weight and the temperature come with the broadcast."""

    receives: ClassVar[tuple[str, ...]] = ("model", "images", "weight", "temperature", "pixels")

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        images = Beside("received:images", batch=self.batch, changes={"x": ()})
        return tuple(replace(phase, beside={"replay": images}) for phase in super().phases(round_, rounds))

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        steps, samples = super().workload_of_views(labelled, unlabelled, round_, rounds, name)
        if name != "replay":  # no images yet
            samples = sum(
                (phase.num_samples(labelled) for phase in self.phases(round_, rounds)), np.zeros_like(samples)
            )
        return steps, samples

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        loss = task.loss(net(batch["x"]), batch)
        if not len(batch["replay/x"]):
            return loss
        x = image_bytes.from_bytes(batch["replay/x"], *at.config["pixels"])
        old = at.under(at.received["teacher"], x)
        distilled = replay_loss(net(x), old, getattr(task, "low"), at.config["temperature"])
        return loss + at.config["weight"] * distilled.mean()
