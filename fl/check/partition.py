"""Laws of partitions."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import Field, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from fl.check.bench import CLIENTS, DATA
from fl.check.finding import Broken, Law
from fl.data.dataset import Dataset
from fl.data.parties import check_columns
from fl.data.partition import Partition
from fl.data.partitioner import ColumnPartitioner

EXAMPLES = {"clients": CLIENTS, "alpha": 0.5, "sizes": (10,) * CLIENTS, "classes": 2}


class Splitter(Protocol):
    """A partition part: a dataclass of parameters that assigns the rows of a data set to clients."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def split(self, dataset: Dataset) -> Partition:
        """Partition of the training rows of a data set."""


@functools.cache
def _dataset() -> Dataset:
    return DATA.load()


def a_row_has_at_most_one_client(part: Splitter) -> str | None:
    """No row is given to two clients, and at least one row is given to a client."""
    if isinstance(part, ColumnPartitioner):
        return "distributes columns; all parties hold all rows"
    part.split(_dataset()).check(len(_dataset()))
    return None


def a_column_has_at_most_one_party(part: Splitter) -> str | None:
    """No column is given to two parties, and each party has one. All passive parties hold the same rows in order."""
    if not isinstance(part, ColumnPartitioner):
        return "distributes rows"
    columns, partition = part.party_columns(_dataset()), part.split(_dataset())
    check_columns(columns, _dataset().train["x"].shape[1:][part.sample_axis])
    rows = partition.indices.reshape(len(columns) - 1, -1)
    if (rows != rows[0]).any():
        raise Broken("the parties hold different rows")
    return None


def the_seed_determines_the_partition(part: Splitter) -> None:
    """The same arguments give the same partition; another seed gives another one."""
    if not _same(part, part):
        raise Broken("split twice, two partitions")
    if hasattr(part, "seed") and _same(part, replace(part, seed=part.seed + 1)):
        raise Broken(f"seeds {part.seed} and {part.seed + 1} give the same partition")


def _same(one: Splitter, other: Splitter) -> bool:
    """Whether two partitioners distribute rows, or columns, in the same way."""
    if isinstance(one, ColumnPartitioner) and isinstance(other, ColumnPartitioner):
        mine, theirs = one.party_columns(_dataset()), other.party_columns(_dataset())
        return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))
    return same_partition(one.split(_dataset()), other.split(_dataset()))


def same_partition(a: Partition, b: Partition) -> bool:
    """Whether two partitions give the same rows, in the same order, to the same clients."""
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.offsets, b.offsets)


def each_client_has_at_least_min_size_rows(part: Splitter) -> str | None:
    """No client has fewer rows than `min_size`; an impossible `min_size` is refused."""
    if not hasattr(part, "min_size"):
        return "has no min_size"
    sizes = np.diff(replace(part, min_size=6).split(_dataset()).offsets)
    if sizes.min() < 6:
        raise Broken(f"min_size=6 gives clients of {sizes.tolist()}")
    _require_refusal(part, {"min_size": len(_dataset())})
    return None


def impossible_arguments_are_refused(part: Splitter) -> None:
    """Impossible numbers of clients and parties, and impossible concentrations raise a ValueError."""
    wrong = {"clients": (0, -1, 10**6), "alpha": (0.0, -1.0, math.nan), "parties": (0, 1, 10**6)}
    for name, values in wrong.items():
        if hasattr(part, name):
            for value in values:
                _require_refusal(part, {name: value})


def _require_refusal(part: Splitter, arguments: Mapping[str, Any]) -> None:
    try:
        replace(part, **arguments).split(_dataset())
    except ValueError:
        return
    raise Broken(f"{dict(arguments)} is not refused; raise a ValueError that says what is allowed")


LAWS: list[Law] = [
    a_row_has_at_most_one_client,
    a_column_has_at_most_one_party,
    the_seed_determines_the_partition,
    each_client_has_at_least_min_size_rows,
    impossible_arguments_are_refused,
]
