"""Permuted pixels: each task has all samples, with the features in its own order.

    task 0: x      task t: x[:, p_t], p_t a permutation of the d features drawn from (seed, t)      domain-incremental

Goodfellow, Mirza, Xiao, Courville, Bengio 2013, arXiv:1312.6211; Kirkpatrick et al. 2017, arXiv:1612.00796. The
samples are copied for each task, so a stream of T tasks takes T times the memory of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.stream import Period, Split, Stream, split_rows
from fl.registry import register
from fl.tasks.task import Task
from fl.tensors import random


def pixel_orders(features: int, tasks: int, seed: int = 0) -> np.ndarray:
    """Return the order of the features in each task, (tasks, features); ascending in task 0."""
    drawn = [random.permutation(features, seed, "permuted", t) for t in range(1, tasks)]
    return np.stack([np.arange(features), *drawn])


@register("stream", "permuted")
@dataclass(frozen=True, kw_only=True)
class Permuted(Stream):
    """Tasks with the same samples and a new random order of the features.

    Args:
        tasks: Number of tasks; at least 1.
        rounds: Rounds per task; at least 1.
        seed: Seed of the orders.
    """

    seed: int = 0

    def periods(self, dataset: Dataset, split: Split, task: Task) -> tuple[Dataset, Sequence[Period]]:
        orders = pixel_orders(dataset.train["x"][0].size, self.tasks, self.seed)
        clients = None if dataset.clients is None else np.tile(dataset.clients, self.tasks)
        test = None if dataset.test is None else _permuted(dataset.test, orders)
        held = None if dataset.held is None else np.tile(dataset.held, self.tasks)
        repeated = Dataset(_permuted(dataset.train, orders), test, clients, dataset.server, held)
        n, m = len(dataset), 0 if dataset.test is None else len(dataset.test["x"])
        return repeated, [
            Period(
                self.rounds, split_rows(repeated, np.arange(t * n, t * n + n), split), task, np.arange(t * m, t * m + m)
            )
            for t in range(self.tasks)
        ]


def _permuted(arrays: Arrays, orders: np.ndarray) -> Arrays:
    """Return the samples of all tasks, one task after another."""
    repeated = {name: np.concatenate([array] * len(orders)) for name, array in arrays.items() if name != "x"}
    flat = arrays["x"].reshape(len(arrays["x"]), -1)
    return {"x": np.concatenate([flat[:, order] for order in orders]).reshape(-1, *arrays["x"].shape[1:]), **repeated}
