"""Natural owners: one client per distinct id of the data set, in ascending order of ids.

With `clients: n` only the n lowest ids take part; other rows are not used. Rows that the data keep for validation or
tests (`Dataset.held`) are the client's validation and test rows; splits.val or splits.test stays 0 then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import positive
from fl.data.dataset import Dataset
from fl.data.grouping import group_by
from fl.data.partition import Partition, owners
from fl.data.partitioner import Partitioner
from fl.registry import register


def natural(ids: np.ndarray, clients: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets) from the owner's id of each row. The rows of a client ascend.

    >>> [a.tolist() for a in natural(np.array([30, 10, 30]))]
    [[1, 0, 2], [0, 1, 3]]
    """
    distinct, owners = np.unique(ids, return_inverse=True)
    if clients is None:
        return group_by(owners, len(distinct))
    positive(clients=clients)
    if clients > len(distinct):
        raise ValueError(
            f"clients: {clients} is more than the {len(distinct)} of the data set; leave it out to use all"
        )
    order, offsets = group_by(owners, len(distinct))
    return order[: offsets[clients]], offsets[: clients + 1]


@register("partition", "natural")
@dataclass(frozen=True, kw_only=True)
class Natural(Partitioner):
    """The natural owners of the rows.

    Args:
        clients: Use only this many clients, those with the lowest ids; positive. Default: all.
    """

    clients: int | None = None

    keeps_held: ClassVar[bool] = True
    leaves_rows: ClassVar[bool] = True

    def split(self, dataset: Dataset) -> Partition:
        if dataset.clients is None:
            raise ValueError(
                "partition: 'natural' needs a data set with natural owners; this one has none; name their "
                "column in data.clients where the data set has this setting, or use 'iid' or 'dirichlet'"
            )
        partition = Partition(*natural(dataset.clients, self.clients))
        if dataset.held is None:
            return partition
        owner, count = owners(partition), partition.num_clients
        val, test = (dataset.held_for(split)[partition.indices] for split in ("val", "test"))
        order, _ = group_by(3 * owner + val + 2 * test, 3 * count)
        counts = (np.bincount(owner[held], minlength=count) for held in (val, test))
        return Partition(partition.indices[order], partition.offsets, *counts)
