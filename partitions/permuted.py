"""Permuted pixels: every task has all the samples, with the features of a sample in an order of the task's own.

    task 0: x        task t: x[:, p_t], p_t a permutation of the d features drawn from (seed, t)        domain-incremental

Goodfellow, Mirza, Xiao, Courville, Bengio 2013, arXiv:1312.6211; Kirkpatrick et al. 2017, arXiv:1612.00796. The samples are copied
once per task: a stream of T tasks takes T times the memory of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.stream import Stage, Stream, split_rows
from fl.registry import register
from fl.tensors import random


def pixel_orders(features: int, tasks: int, seed: int = 0) -> np.ndarray:
    """(tasks, features): the order of the features in each task; ascending in task 0."""
    drawn = [random.permutation(features, seed, "permuted", t) for t in range(1, tasks)]
    return np.stack([np.arange(features), *drawn])


@register("stream", "permuted")
@dataclass(frozen=True, kw_only=True)
class Permuted(Stream):
    """`tasks` tasks of `rounds` rounds: the same samples, their features permuted anew in each."""

    seed: int = 0

    def stages(self, dataset, split, task):
        orders = pixel_orders(dataset.train["x"][0].size, self.tasks, self.seed)
        clients = None if dataset.clients is None else np.tile(dataset.clients, self.tasks)
        test = None if dataset.test is None else _permuted(dataset.test, orders)
        held = None if dataset.held is None else np.tile(dataset.held, self.tasks)
        long = Dataset(_permuted(dataset.train, orders), test, clients, dataset.server, held)
        n, m = len(dataset), 0 if dataset.test is None else len(dataset.test["x"])
        return long, [
            Stage(self.rounds, split_rows(long, np.arange(t * n, t * n + n), split), task, np.arange(t * m, t * m + m))
            for t in range(self.tasks)
        ]


def _permuted(arrays: Arrays, orders: np.ndarray) -> Arrays:
    """The samples once per task, one task after another."""
    repeated = {name: np.concatenate([array] * len(orders)) for name, array in arrays.items() if name != "x"}
    flat = arrays["x"].reshape(len(arrays["x"]), -1)
    return {"x": np.concatenate([flat[:, order] for order in orders]).reshape(-1, *arrays["x"].shape[1:]), **repeated}
