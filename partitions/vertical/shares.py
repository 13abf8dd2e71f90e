"""Equal shares of the columns, or given columns, for parties that hold the same rows (vertical federated learning).

party p: columns floor(p D / P) .. floor((p+1) D / P) of the D columns, in order or shuffled;  or given lists
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fl.checks import at_least, one_of
from fl.data.dataset import Dataset
from fl.data.partitioner import ColumnPartitioner
from fl.registry import register
from fl.tensors import random


def equal_shares(width: int, parties: int, order: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the columns of each party: consecutive parts of `order` (default: 0..width-1), ascending in each party.

    >>> [own.tolist() for own in equal_shares(width=5, parties=2)]
    [[0, 1], [2, 3, 4]]
    """
    if parties > width:
        raise ValueError(f"parties: {parties} is more than the {width} columns of the data; each party needs one")
    order = np.arange(width) if order is None else order
    ends = np.arange(parties + 1) * width // parties
    return [np.sort(order[a:b]) for a, b in zip(ends, ends[1:])]


@register("partition", "vertical")
@dataclass(frozen=True, kw_only=True)
class Vertical(ColumnPartitioner):
    """Columns for each party; all parties hold all rows. Give one of `parties` and `columns`.

    Columns of vectors are their features. Columns of images (C, H, W) are columns of pixels: two parties in order hold
    the left and the right half of each image.

    Args:
        parties: Number of parties with the active one, at least 2. Their shares differ by at most one column.
        columns: Columns of each party, by number (from 0) or by name; the first list is the active party's. Columns in
            no list are not used.
        shuffle: Distribute the columns in random order. Default: in their order.
        along: Axis of images: "width" or "height" (rows of pixels instead).
        seed: Seed of the shuffle, and of the choice of validation and test rows.
    """

    parties: int | None = None
    columns: tuple[tuple[int | str, ...], ...] | None = None
    shuffle: bool = False
    along: Literal["width", "height"] = "width"
    seed: int = 0

    example_config: ClassVar[dict[str, Any]] = {"partition.parties": 2, "partition.shuffle": True}

    def __post_init__(self) -> None:
        if (self.parties is None) == (self.columns is None):
            raise ValueError("parties: give either `parties`, a number, or `columns`, one list per party")
        at_least(2, parties=self.parties, hint="the active party and at least one other party")
        one_of(("width", "height"), along=self.along)
        if self.columns is not None and self.shuffle:
            raise ValueError("shuffle: it changes nothing beside `columns`; leave one of them out")

    @property
    def sample_axis(self) -> int:
        return -1 if self.along == "width" else -2

    def party_columns(self, dataset: Dataset) -> Sequence[np.ndarray]:
        shape = dataset.train["x"].shape[1:]
        if len(shape) < -self.sample_axis:
            raise ValueError(f"along: samples of shape {shape} have no {self.along}; leave it out for vectors")
        width = shape[self.sample_axis]
        if self.columns is not None:
            return [np.array([_number(column, dataset.names) for column in own], np.int64) for own in self.columns]
        assert self.parties is not None
        order = random.permutation(width, self.seed, "vertical") if self.shuffle else None
        return equal_shares(width, self.parties, order)


def _number(column: int | str, names: Sequence[str] | None) -> int:
    """Return the number of a column that is given by number or by name."""
    if isinstance(column, int):
        return column
    if names is None:
        raise ValueError(f"columns: {column!r} is a name, and the columns of this data set have none; give numbers")
    if column not in names:
        raise ValueError(f"columns: {column!r} is not one of the columns {list(names)}")
    return list(names).index(column)
