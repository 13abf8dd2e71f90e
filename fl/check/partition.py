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
from fl.data.partition import Partition

EXAMPLES = {"clients": CLIENTS, "alpha": 0.5, "sizes": (10,) * CLIENTS, "classes": 2}


class Splitter(Protocol):
    """A partition part: a dataclass of parameters that assigns the rows of a data set to clients."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def split(self, dataset: Dataset) -> Partition:
        """Partition of the training rows of a data set."""


@functools.cache
def _dataset() -> Dataset:
    return DATA.load()


def a_row_has_at_most_one_client(part: Splitter) -> None:
    """No row is given to two clients, and at least one row is given to a client."""
    part.split(_dataset()).check(len(_dataset()))


def the_seed_determines_the_partition(part: Splitter) -> None:
    """The same arguments give the same partition; another seed gives another one."""
    one, two = part.split(_dataset()), part.split(_dataset())
    if not same_partition(one, two):
        raise Broken("split twice, two partitions")
    if hasattr(part, "seed") and same_partition(one, replace(part, seed=part.seed + 1).split(_dataset())):
        raise Broken(f"seeds {part.seed} and {part.seed + 1} give the same partition")


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
    """Impossible numbers of clients and concentrations raise a ValueError."""
    for name, values in {"clients": (0, -1, 10**6), "alpha": (0.0, -1.0, math.nan)}.items():
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
    the_seed_determines_the_partition,
    each_client_has_at_least_min_size_rows,
    impossible_arguments_are_refused,
]
