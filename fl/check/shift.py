"""Laws of shifts: parts that change what the clients of a partition see."""

from __future__ import annotations

from dataclasses import Field, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from fl.check.bench import CLIENTS
from fl.check.finding import Broken, Law, require_equal
from fl.check.partition import same_partition
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.tensors import random

EXAMPLES = {"classes": 2}
TESTS = 2  # test rows of a client


class Shift(Protocol):
    """A shift part: a dataclass of parameters that changes the rows of each client."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        """The data set with changed training rows."""


def _images() -> Dataset:
    """48 colour images with labels, another column and a test set."""
    draw = random.numpy_generator("check", "shift")

    def arrays(n: int) -> dict[str, np.ndarray]:
        x = draw.standard_normal((n, 3, 6, 6), np.float32)
        return {"x": x, "y": np.arange(n) % 4, "domain": draw.integers(0, 3, n)}

    return Dataset(arrays(48), arrays(12), np.arange(48) // 6)


def _partition(*missing: int) -> Partition:
    """`CLIENTS` clients with five rows each, the last two for tests, in random order; eight rows belong to no client.

    The clients `missing` have one of those eight rows instead of their own.
    """
    rows = random.permutation(48, "check", "shift", "rows")
    lists = [rows[40 + c : 41 + c] if c in missing else rows[5 * c : 5 * c + 5] for c in range(CLIENTS)]
    tests = np.array([0 if c in missing else TESTS for c in range(CLIENTS)])
    return Partition(np.concatenate(lists), np.cumsum([0, *map(len, lists)]), test=tests)


def the_seed_determines_the_shift(part: Shift) -> None:
    """The same arguments give the same shift; another seed gives another one."""
    dataset, partition = _images(), _partition()
    one = part.apply(dataset, partition).digest()
    require_equal(one, part.apply(dataset, partition).digest(), "applied twice: the data")
    if hasattr(part, "seed") and one == replace(part, seed=part.seed + 1).apply(dataset, partition).digest():
        raise Broken(f"seeds {part.seed} and {part.seed + 1} give the same shift")


def the_input_is_not_changed(part: Shift) -> None:
    """`apply` does not modify the data set and the partition that it is given."""
    dataset, partition = _images(), _partition()
    part.apply(dataset, partition)
    require_equal(dataset.digest(), _images().digest(), "the data that apply() was given, before and after,")
    if not same_partition(partition, _partition()):
        raise Broken("apply() changed the partition it was given")


def only_declared_arrays_change(part: Shift) -> None:
    """Only the arrays named in `changes` (default: "x") change, in rows of clients; shapes and types stay the same."""
    before, after, partition = _images(), part.apply(_images(), _partition()), _partition()
    changes = getattr(part, "changes", ("x",))
    for name, array in {**before.train, **after.train}.items():
        if name not in before.train or name not in after.train or array.shape != before.train[name].shape:
            raise Broken(f"train: {name!r} is new, missing or of another shape")
    types, shifted = ({name: array.dtype for name, array in data.train.items()} for data in (before, after))
    require_equal(types, shifted, "types of arrays")
    kept = {n: a for n, a in before.train.items() if n not in changes}
    others = [n for n, a in kept.items() if not np.array_equal(a, after.train[n])]
    others += [] if replace(before, train=after.train).digest() == after.digest() else ["test, server or clients"]
    if others:
        raise Broken(f"{others} changed; only {list(changes)} may, by its ClassVar `changes`")
    if not any(not np.array_equal(before.train[n], after.train[n]) for n in changes):
        raise Broken(f"none of {list(changes)} changed")
    free = np.setdiff1d(np.arange(len(before)), partition.indices)
    if any(not np.array_equal(before.train[n][free], after.train[n][free]) for n in changes):
        raise Broken("rows that belong to no client changed")


def rows_of_other_clients_do_not_matter(part: Shift) -> None:
    """The change of a client's row does not depend on the rows of other clients, nor on the order of rows."""
    dataset, partition = _images(), _partition()
    plain = part.apply(dataset, partition)
    lists = [partition.indices[a:b] for a, b in zip(partition.offsets, partition.offsets[1:])]
    reversed_views = [rows[::-1] for own in lists for rows in (own[:-TESTS], own[-TESTS:])]
    backwards = replace(partition, indices=np.concatenate(reversed_views))
    require_equal(part.apply(dataset, backwards).digest(), plain.digest(), "a client's rows listed backwards: the data")
    for client in range(CLIENTS):
        alone = part.apply(dataset, _partition(*(c for c in range(CLIENTS) if c != client)))
        for name, array in plain.train.items():
            if not np.array_equal(array[lists[client]], alone.train[name][lists[client]]):
                raise Broken(f"{name!r} of client {client} depends on the rows that others have")


LAWS: list[Law] = [
    the_seed_determines_the_shift,
    the_input_is_not_changed,
    only_declared_arrays_change,
    rows_of_other_clients_do_not_matter,
]
