"""Missions: clients in the field meet a few new classes in each mission, until no classes are left.

    pool      the samples of each class, in batches of `samples`;  all batches in one random order
    mission   one client after another takes the next `classes` batches of distinct classes        class-incremental

Hendryx, KC, Walls, Morrison 2021 (Federated Reconnaissance), arXiv:2109.00150. Batches are drawn without replacement,
so a class with several batches can come again, at any client. With `together`, all clients of a mission meet all its
classes, and the samples of each class are distributed among them. With `keep`, a client keeps the samples of all
earlier missions; with one client this is retraining on everything, an upper bound. The test rows of a mission are
those of its classes; if no class recurs, eval/accuracy is the accuracy on all classes met so far. If each class is one
batch, the order depends on clients * classes only. The partition of the run is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import at_least
from fl.data.dataset import Dataset
from fl.data.grouping import group_by, hash_order
from fl.data.partition import Partition
from fl.data.stream import Period, Scenario, Split, Stream
from fl.registry import register
from fl.tasks.task import Task
from fl.tensors import random


def pool(y: np.ndarray, samples: int, seed: int) -> list[np.ndarray]:
    """Split the rows of y (n,) into batches of one class and at most `samples` rows; return them in random order."""
    shuffled = hash_order(random.hash64(seed, "missions", "rows", np.arange(len(y))))
    batches = []
    for label in np.unique(y):
        own = shuffled[y[shuffled] == label]
        batches += [own[a : a + samples] for a in range(0, len(own), samples)]
    return [batches[b] for b in random.permutation(len(batches), seed, "missions", "pool")]


def deal(labels: np.ndarray, clients: int, classes: int, missions: int) -> list[list[list[int]]]:
    """Deal batches to clients; return [mission][client] -> positions in `labels`, the classes of the batches.

    Each client takes the first remaining batches of `classes` distinct classes, or fewer if the pool runs out.

    >>> deal(np.array([5, 5, 6, 7]), clients=1, classes=2, missions=2)
    [[[0, 2]], [[1, 3]]]
    """
    left, dealt = list(range(len(labels))), []
    for _ in range(missions):
        mission = []
        for _ in range(clients):
            taken: dict[int, int] = {}
            for position in left:
                if len(taken) == classes:
                    break
                taken.setdefault(int(labels[position]), position)
            mission.append(list(taken.values()))
            gone = set(taken.values())
            left = [position for position in left if position not in gone]
        dealt.append(mission)
    return dealt


@register("stream", "missions")
@dataclass(frozen=True, kw_only=True)
class Missions(Stream):
    """Missions in which each client meets new classes.

    Args:
        tasks: Number of missions; at least 1.
        rounds: Rounds per mission; at least 1.
        clients: Number of clients; at least 1.
        classes: Classes that a client meets in a mission; at least 1.
        samples: Samples per class and mission; at least 1.
        together: All clients of a mission share all its classes.
        keep: Clients keep the samples of earlier missions.
        seed: Seed of the random choices.
    """

    rounds: int = 1
    clients: int = 5
    classes: int = 5
    samples: int = 15
    together: bool = False
    keep: bool = False
    seed: int = 0

    scenario: ClassVar[Scenario] = "class"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, clients=self.clients, classes=self.classes, samples=self.samples)

    def periods(self, dataset: Dataset, split: Split, task: Task) -> tuple[Dataset, Sequence[Period]]:
        y = dataset.labels
        batches = pool(y, self.samples, self.seed)
        dealt = deal(np.array([y[batch[0]] for batch in batches]), self.clients, self.classes, self.tasks)
        full = sum(any(mission) for mission in dealt)
        if full < self.tasks:
            raise ValueError(f"tasks: {self.tasks}, but the {len(batches)} batches last for {full} missions only")
        periods: list[Period] = []
        held: list[list[np.ndarray]] = [[] for _ in range(self.clients)]
        for mission in dealt:
            met = [[batches[b] for b in taken] for taken in mission]
            labels = np.unique([y[batch[0]] for own in met for batch in own])
            if self.together:
                everything = [batch for own in met for batch in own]
                met = [[batch[c :: self.clients] for batch in everything] for c in range(self.clients)]
            held = [old + new for old, new in zip(held, met)] if self.keep else met
            test = None if dataset.test is None else np.flatnonzero(np.isin(dataset.test["y"], labels))
            periods.append(Period(self.rounds, _partition(held), task, test))
        return dataset, periods


def _partition(held: list[list[np.ndarray]]) -> Partition:
    """Return the partition of each client's batches of rows."""
    rows = [np.concatenate([np.empty(0, np.int64), *batches]) for batches in held]
    owners = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    order, offsets = group_by(owners, len(rows))
    return Partition(np.concatenate(rows)[order], offsets)
