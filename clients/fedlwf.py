"""FedLwF's client: local training on the labels and on the teacher's outputs for the same samples.

    loss_s = L(z_s, y_s) + weight * T^2 * KL(softmax(t_s / T) || softmax(z_s / T))
    t_s: outputs of the teacher,  z_s: outputs of the model

Li, Hoiem 2016, arXiv:1606.09282; T^2 keeps the size of gradients as in Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
The teacher's outputs are computed in evaluation mode: once, before the first step, or for each batch, if training
batches are random.  In the first task there is no teacher.
Equals FedAvg: weight=0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from fl import Batch, LossOfOutputs, ModelOutputs, Params, Task, TrainingInputs, register


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(outputs / T)), (B,); both are (B, K)."""
    student = F.log_softmax(outputs / temperature, -1)
    target = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (target.exp() * (target - student)).sum(-1)


def old_classes(task: Task) -> slice:
    """Return the outputs of old tasks: if the task uses a slice of the outputs, those before the slice; else all."""
    return slice(getattr(task, "low", 0) or None)


@register("client", "fedlwf")
@dataclass(frozen=True, kw_only=True)
class FedLwF(LossOfOutputs):
    """Local training with distillation; its weight and temperature come with the broadcast."""

    receives: ClassVar[tuple[str, ...]] = ("model", "weight", "temperature")

    def reference_models(self, inputs: TrainingInputs) -> Mapping[str, Params]:
        teaches = "teacher" in inputs.received and inputs.config["weight"]
        return {"teacher": inputs.received["teacher"]} if teaches else {}

    def constants(
        self, references: Mapping[str, ModelOutputs], config: Mapping[str, Any], task: Task
    ) -> Mapping[str, Tensor]:
        return {"teacher": references["teacher"].outputs[..., old_classes(task)]}

    def sample_losses(
        self, own: ModelOutputs, constants: Mapping[str, Tensor], batch: Batch, config: Mapping[str, Any], task: Task
    ) -> Tensor:
        losses = task.loss(own.outputs, batch)
        if not constants:
            return losses
        outputs = own.outputs[..., old_classes(task)]
        return losses + config["weight"] * distillation(outputs, constants["teacher"], config["temperature"])
