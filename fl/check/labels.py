"""Laws of labels: parts that choose which training rows keep their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fl.check.finding import Broken, Law, require_equal
from fl.data.dataset import Dataset
from fl.data.labels import Labels, chosen, with_labelled
from fl.data.partition import Partition
from fl.tensors import random

EXAMPLES = {"share": 0.3, "labelled": 2, "seen": 3}
ROWS, CLIENTS = 60, 4


def _dataset() -> Dataset:
    """Rows of five classes; each seventh row has no label in the data."""
    y = np.arange(ROWS) % 5
    y[::7] = -1
    return Dataset({"x": np.zeros((ROWS, 2)), "y": y})


def _partition(backwards: bool = False) -> Partition:
    """15 rows per client: 12 for training, in one order or in the other, then 1 for validation and 2 for tests."""
    rows = random.permutation(ROWS, "check", "labels").reshape(CLIENTS, -1)
    if backwards:
        rows = np.concatenate([rows[:, 11::-1], rows[:, 12:]], axis=1)
    ones = np.ones(CLIENTS, np.int64)
    return Partition(rows.reshape(-1), np.arange(CLIENTS + 1) * 15, val=ones, test=2 * ones)


def _kept(part: Labels, backwards: bool = False) -> list[int]:
    """The training rows that keep their labels, ascending."""
    partition = _partition(backwards)
    hidden = with_labelled(partition, chosen(part, _dataset(), partition))
    return np.sort(hidden.rows_of("train")).tolist()


def the_seed_determines_the_choice(part: Labels) -> None:
    """The same arguments choose the same rows."""
    require_equal(_kept(part), _kept(part), "asked twice: the rows with labels")
    if hasattr(part, "seed") and getattr(part, "share", 0.5) != 1:
        others = [_kept(replace(part, seed=part.seed + k)) for k in range(1, 6)]  # type: ignore[type-var]
        if all(other == _kept(part) for other in others):
            raise Broken(f"seeds {part.seed} to {part.seed + 5} choose the same rows")


def the_order_of_rows_does_not_matter(part: Labels) -> None:
    """The choice does not depend on the order in which a client's rows are listed."""
    require_equal(_kept(part), _kept(part, backwards=True), "a client's rows listed backwards: the rows with labels")


def some_rows_keep_their_labels(part: Labels) -> None:
    """At least one row keeps its label, and the data set and the partition are not modified."""
    dataset, partition = _dataset(), _partition()
    if not chosen(part, dataset, partition).any():
        raise Broken("no row keeps its label")
    require_equal(dataset.digest(), _dataset().digest(), "the data that keep() was given, before and after,")
    if not np.array_equal(partition.indices, _partition().indices):
        raise Broken("keep() changed the partition it was given")


LAWS: list[Law] = [the_seed_determines_the_choice, the_order_of_rows_does_not_matter, some_rows_keep_their_labels]
