"""Domains in turn: every task has the samples of one domain, with the same classes.

    task t: the rows whose array `by` has its t-th value, ascending        domain-incremental

`by` is an integer array of the data set with one number per row (MNIST's hsf, a hospital, a year); the test rows of a task are those
of its domain. The array itself is then left out of the samples. The samples are shared out once, all domains together: a client may
have no rows in a stage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fl.data.dataset import Arrays
from fl.data.stream import Stage, Stream
from fl.registry import register
from partitions.classes import restricted


@register("stream", "domains")
@dataclass(frozen=True, kw_only=True)
class Domains(Stream):
    """As many `tasks` as `by` has values, `rounds` rounds each."""

    by: str

    def stages(self, dataset, split, task):
        values = np.unique(_domain(dataset.train, self.by))
        if len(values) != self.tasks:
            shown = values[:10].tolist() + ["..."] * (len(values) > 10)
            raise ValueError(f"tasks: {self.tasks} is not {len(values)}, the number of values of {self.by!r}: {shown}")
        partition = split(dataset)
        test = None if dataset.test is None else {n: a for n, a in dataset.test.items() if n != self.by}
        long = replace(dataset, train={n: a for n, a in dataset.train.items() if n != self.by}, test=test)
        return long, [
            Stage(
                self.rounds,
                restricted(partition, dataset.train[self.by] == value),
                task,
                None if test is None else np.flatnonzero(_domain(dataset.test, self.by) == value),
                f"{self.by}={value}",
            )
            for value in values
        ]


def _domain(arrays: Arrays, by: str) -> np.ndarray:
    array = arrays.get(by)
    if by in ("x", "y") or array is None or array.ndim != 1 or array.dtype.kind not in "iu":
        there = {name: f"{a.dtype} {a.shape}" for name, a in arrays.items()}
        raise ValueError(f"by: {by!r} is not an integer array with one number per row; there are {there}")
    return array
