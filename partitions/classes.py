"""Split classes: every task has some of the classes, with all their samples.

    head per_task:  task t asks which of its own c classes, on outputs tc .. (t+1)c - 1 of one wide head     task-incremental
    head shared:    the same question in every task, y = place of the class within its task, c outputs      domain-incremental
    head joint:     which of all the classes                                                                class-incremental

Zenke, Poole, Ganguli 2017, arXiv:1703.04200; the three scenarios: van de Ven, Tolias 2019, arXiv:1904.07734. The K classes are cut
into `tasks` groups of c = K / tasks, in the order of their labels or in one drawn from the seed; labels are numbered anew in that
order. The samples are shared out once, all classes together, and a client takes part in a task with what it has of it: a
client may have no rows in a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fl.data.dataset import Arrays
from fl.data.partition import Partition, owners
from fl.data.stream import Scenario, Stage, Stream
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.task import Metric, Task
from fl.tensors import random


def class_order(classes: int, order: str, seed: int = 0) -> np.ndarray:
    """(classes,): the classes in the order in which tasks take them."""
    return random.permutation(classes, seed, "classes") if order == "seeded" else np.arange(classes)


def restricted(partition: Partition, kept: np.ndarray) -> Partition:
    """Of each client's rows those that are `kept` (rows,) bool; some clients may be left with none."""
    owner = owners(partition)
    mine = kept[partition.indices]
    counts = np.bincount(owner[mine], minlength=partition.num_clients)
    return Partition(partition.indices[mine], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


@dataclass(frozen=True)
class Slice(Task):
    """`task` on outputs low .. high - 1 alone, of samples whose labels are in that range."""

    task: Task
    low: int
    high: int

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        return self.task.num_outputs(arrays)

    def own(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        return outputs[..., self.low : self.high], {**batch, "y": batch["y"] - self.low}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.task.loss(*self.own(outputs, batch))

    def metrics(self) -> Mapping[str, Metric]:
        return {name: Sliced(metric, self) for name, metric in self.task.metrics().items()}


class Sliced(Metric):
    """A metric of what a slice sees."""

    def __init__(self, metric: Metric, slice_: Slice):
        self.metric, self.slice = metric, slice_

    @property
    def batched(self) -> bool:  # type: ignore[override]
        return self.metric.batched

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        return self.metric.measure(*self.slice.own(outputs, batch), segments, count)

    def merge(self, a: Any, b: Any) -> Any:
        return self.metric.merge(a, b)

    def finish(self, acc: Any) -> float:
        return self.metric.finish(acc)

    def each(self, accs: Any, count: int) -> np.ndarray:
        return self.metric.each(accs, count)


@register("stream", "classes")
@dataclass(frozen=True, kw_only=True)
class Classes(Stream):
    """`tasks` groups of equally many classes, `rounds` rounds each."""

    head: Literal["per_task", "shared", "joint"] = "shared"
    order: Literal["label", "seeded"] = "label"
    seed: int = 0

    @property
    def scenario(self) -> Scenario:  # type: ignore[override]
        return {"per_task": "task", "shared": "domain", "joint": "class"}[self.head]

    def __post_init__(self):
        super().__post_init__()
        if self.head not in ("per_task", "shared", "joint"):
            raise ValueError(f"head: {self.head!r} is not one of ['per_task', 'shared', 'joint']")
        if self.order not in ("label", "seeded"):
            raise ValueError(f"order: {self.order!r} is not one of ['label', 'seeded']")

    def stages(self, dataset, split, task):
        classes = int(dataset.labels.max()) + 1
        if classes % self.tasks:
            raise ValueError(f"tasks: {self.tasks} does not divide the {classes} classes; take a number that does")
        size = classes // self.tasks
        places = np.argsort(class_order(classes, self.order, self.seed))
        test = None if dataset.test is None else self._asked(dataset.test, places, size)
        long = replace(dataset, train=self._asked(dataset.train, places, size), test=test)
        partition, place = split(dataset), places[dataset.labels]
        asked = None if dataset.test is None else places[dataset.test["y"]]
        return long, [
            Stage(
                self.rounds,
                restricted(partition, place // size == t),
                Slice(task, t * size, (t + 1) * size) if self.head == "per_task" else task,
                None if asked is None else np.flatnonzero(asked // size == t),
            )
            for t in range(self.tasks)
        ]

    def _asked(self, arrays: Arrays, places: np.ndarray, size: int) -> Arrays:
        """The samples with the labels that tasks ask for."""
        place = places[arrays["y"]]
        return {**arrays, "y": place % size if self.head == "shared" else place}
