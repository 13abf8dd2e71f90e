"""Several classifications of the same samples, learnt together.

    loss = sum_t -log p_t(y_t),    p_t = softmax of the outputs of task t

Task t has the labels `y_NAME` (N,), and its outputs stand in the order of `classes`. `data: tasks` makes such labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fl.checks import at_least
from fl.data.checking import refuse, whole_numbers
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.supervised import Loss
from fl.tasks.task import MeanMetric, Metric, Task

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_names(names: Iterable[str], key: str) -> None:
    """Check names of tasks, which are parts of the names of metrics and tensors. `key`: argument with the names."""
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{key}: {name!r} is not a word of letters, digits and _; rename this task")


class TaskLoss(MeanMetric):
    """Mean loss of one of the tasks."""

    def __init__(self, task: Multitask, name: str):
        self.task, self.name = task, name

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.task.loss_of((self.name,), outputs, batch)


class TaskAccuracy(MeanMetric):
    """Share of samples whose class in one of the tasks has the highest of its outputs."""

    def __init__(self, task: Multitask, name: str):
        self.task, self.name = task, name

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs[:, self.task.columns[self.name]].argmax(-1) == batch[f"y_{self.name}"]


@register("task", "multitask")
@dataclass(frozen=True, kw_only=True)
class Multitask(Task):
    """Several classifications; metrics loss (the sum), and loss/NAME and accuracy/NAME of each.

    Args:
        classes: number of classes of each task by name, at least 2. The task NAME has the labels `y_NAME`.
    """

    classes: dict[str, int]

    example_config: ClassVar[Mapping[str, Any]] = {"task.classes": {"digit": 4, "parity": 2}}

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("classes: there is no task; name at least one, such as {parity: 2}")
        check_names(self.classes, "classes")
        for name, count in self.classes.items():
            at_least(2, classes=count, hint=f"it is the number of classes of {name!r}")

    @property
    def columns(self) -> dict[str, slice]:
        """The outputs of each task.

        >>> Multitask(classes={"digit": 10, "parity": 2}).columns
        {'digit': slice(0, 10, None), 'parity': slice(10, 12, None)}
        """
        ends = np.cumsum(list(self.classes.values())).tolist()
        return {name: slice(end - count, end) for (name, count), end in zip(self.classes.items(), ends)}

    def heads(self) -> Mapping[str, int]:
        return self.classes

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Take whole numbers from 0 to the number of classes - 1 for each task; refuse everything else."""
        found = dict(arrays)
        for name, count in self.classes.items():
            key = f"y_{name}"
            if key not in arrays:
                if where == "server":
                    continue
                known = sorted(array[2:] for array in arrays if array.startswith("y_"))
                raise ValueError(f"{where} has no {key!r}; it has labels of the tasks {known}. data: tasks makes them")
            y = arrays[key]
            if y.ndim != 1:
                raise ValueError(f"{where} {key} {y.shape} is not one class per row; make it (rows,)")
            y = whole_numbers(y, f"{where} {key}", "classes are whole numbers")
            refuse((y < 0) | (y >= count), y, where, f"task.classes says that {name} has {count}", name=key)
            found[key] = y
        return found

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        return sum(self.classes.values())

    def loss_of(self, names: Iterable[str], outputs: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the losses of the tasks `names`, (B,), from the outputs of all tasks (B, K)."""
        columns = self.columns
        losses = [F.cross_entropy(outputs[:, columns[n]], batch[f"y_{n}"], reduction="none") for n in names]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.loss_of(self.classes, outputs, batch)

    def metrics(self) -> Mapping[str, Metric]:
        losses = {f"loss/{name}": TaskLoss(self, name) for name in self.classes}
        return {"loss": Loss(self), **losses, **{f"accuracy/{name}": TaskAccuracy(self, name) for name in self.classes}}
