"""Missions: clients in the field meet new classes, a few in every mission, until there are none left.

    pool      the samples of each class, in batches of `samples`;  all batches in one random order
    mission   client after client takes the next `classes` batches of classes that it does not have yet        class-incremental

Hendryx, KC, Walls, Morrison 2021 (Federated Reconnaissance), arXiv:2109.00150: drawn without replacement, so that a class of several batches comes
again, at any client. With `together` the clients of a mission meet all its classes, the samples of each dealt out among them.
With `keep` a client has what it met in all missions so far (with one client: the retraining on everything, an upper bound).
The test rows of a mission are those of the classes met in it; where no class recurs, eval/accuracy then is the accuracy on all
classes met so far. The order depends on clients * classes alone if every class is one batch.
The run's partition has no part in this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.data.grouping import group_by, hash_order
from fl.data.partition import Partition
from fl.data.stream import Scenario, Stage, Stream
from fl.registry import register
from fl.tensors import random


def pool(y: np.ndarray, samples: int, seed: int) -> list[np.ndarray]:
    """Rows of y (n,) in batches of one class and up to `samples` rows, the batches in random order."""
    shuffled = hash_order(random.hash64(seed, "missions", "rows", np.arange(len(y))))
    batches = []
    for label in np.unique(y):
        own = shuffled[y[shuffled] == label]
        batches += [own[a : a + samples] for a in range(0, len(own), samples)]
    return [batches[b] for b in random.permutation(len(batches), seed, "missions", "pool")]


def deal(labels: np.ndarray, clients: int, classes: int, missions: int) -> list[list[list[int]]]:
    """[mission][client] -> positions in `labels`, the classes of a pool's batches: each client takes the first ones left of
    `classes` distinct classes; fewer where the pool runs dry."""
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
    """`tasks` missions of `rounds` rounds; in each, every one of `clients` meets `classes` classes, `samples` of each."""

    rounds: int = 1
    clients: int = 5
    classes: int = 5
    samples: int = 15
    together: bool = False
    keep: bool = False
    seed: int = 0

    scenario: ClassVar[Scenario] = "class"

    def __post_init__(self):
        super().__post_init__()
        for name in ("clients", "classes", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    def stages(self, dataset, split, task):
        y = dataset.labels
        batches = pool(y, self.samples, self.seed)
        dealt = deal(np.array([y[batch[0]] for batch in batches]), self.clients, self.classes, self.tasks)
        full = sum(any(mission) for mission in dealt)
        if full < self.tasks:
            raise ValueError(f"tasks: {self.tasks}, but the {len(batches)} batches are used up after {full} missions")
        stages, held = [], [[] for _ in range(self.clients)]
        for mission in dealt:
            met = [[batches[b] for b in taken] for taken in mission]
            labels = np.unique([y[batch[0]] for own in met for batch in own])
            if self.together:
                everything = [batch for own in met for batch in own]
                met = [[batch[c :: self.clients] for batch in everything] for c in range(self.clients)]
            held = [old + new for old, new in zip(held, met)] if self.keep else met
            test = None if dataset.test is None else np.flatnonzero(np.isin(dataset.test["y"], labels))
            stages.append(Stage(self.rounds, _partition(held), task, test))
        return dataset, stages


def _partition(held: list[list[np.ndarray]]) -> Partition:
    """Of batches of rows by client."""
    rows = [np.concatenate([np.empty(0, np.int64), *own]) for own in held]
    owners = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    order, offsets = group_by(owners, len(rows))
    return Partition(np.concatenate(rows)[order], offsets)
