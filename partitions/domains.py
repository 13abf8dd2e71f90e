"""Domains one after another: each task has the samples of one domain, with the same classes.

    task t: the rows whose array `by` has its t-th value, ascending        domain-incremental

`by` is an integer array of the data set with one number per row (MNIST's hsf, a hospital, a year). The test rows of a
task are those of its domain. The array is then removed from the samples. The samples are distributed once, all domains
together, so a client may have no rows in a period.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.stream import Period, Split, Stream
from fl.registry import register
from fl.tasks.task import Task

from .classes import restricted


@register("stream", "domains")
@dataclass(frozen=True, kw_only=True)
class Domains(Stream):
    """Tasks that are the domains of a data set.

    Args:
        tasks: Number of tasks; equals the number of values of `by`.
        rounds: Rounds per task; at least 1.
        by: Name of the array with the domain of each row.
    """

    by: str

    def periods(self, dataset: Dataset, split: Split, task: Task) -> tuple[Dataset, Sequence[Period]]:
        values = np.unique(_domain(dataset.train, self.by))
        if len(values) != self.tasks:
            shown = values[:10].tolist() + ["..."] * (len(values) > 10)
            raise ValueError(f"tasks: {self.tasks} is not {len(values)}, the number of values of {self.by!r}: {shown}")
        partition = split(dataset)
        domains = None if dataset.test is None else _domain(dataset.test, self.by)
        test = None if dataset.test is None else {n: a for n, a in dataset.test.items() if n != self.by}
        without_domain = replace(dataset, train={n: a for n, a in dataset.train.items() if n != self.by}, test=test)
        return without_domain, [
            Period(
                self.rounds,
                restricted(partition, dataset.train[self.by] == value),
                task,
                None if domains is None else np.flatnonzero(domains == value),
                f"{self.by}={value}",
            )
            for value in values
        ]


def _domain(arrays: Arrays, by: str) -> np.ndarray:
    array = arrays.get(by)
    if by in ("x", "y") or array is None or array.ndim != 1 or array.dtype.kind not in "iu":
        present = {name: f"{a.dtype} {a.shape}" for name, a in arrays.items()}
        raise ValueError(f"by: {by!r} is not an integer array with one number per row; the arrays are {present}")
    return array
