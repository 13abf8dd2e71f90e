"""The clients that the data come with: one client per distinct id, in ascending order of ids.

With `clients: n` only the n lowest ids take part, and the others' rows are nobody's. Rows that the data hold for their client to
test on (`Dataset.held`) are its test rows; splits.test stays 0 then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import group_by
from fl.data.partition import Partition, owners
from fl.registry import register


def natural(ids: np.ndarray, clients: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(indices, offsets) from the id of each row; rows of a client ascend."""
    distinct, owners = np.unique(ids, return_inverse=True)
    if clients is None:
        return group_by(owners, len(distinct))
    if clients < 1:
        raise ValueError(f"clients: {clients} is not positive")
    if clients > len(distinct):
        raise ValueError(
            f"clients: {clients} is more than the {len(distinct)} that the data have; leave it out to take all"
        )
    order, offsets = group_by(owners, len(distinct))
    return order[: offsets[clients]], offsets[: clients + 1]


@register("partition", "natural")
@dataclass(frozen=True, kw_only=True)
class Natural:
    clients: int | None = None
    keeps_held: ClassVar[bool] = True

    def split(self, dataset: Dataset) -> Partition:
        if dataset.clients is None:
            raise ValueError(
                "partition: 'natural' needs data that say whose each row is; these do not, take 'iid' or 'dirichlet'"
            )
        partition = Partition(*natural(dataset.clients, self.clients))
        if dataset.held is None:
            return partition
        held, owner, count = dataset.held[partition.indices], owners(partition), partition.num_clients
        order, _ = group_by(2 * owner + held, 2 * count)
        return Partition(partition.indices[order], partition.offsets, test=np.bincount(owner[held], minlength=count))
