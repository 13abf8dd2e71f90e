"""Shards: rows sorted by label are cut into equal shards, and each client gets a few of them at random.

    sort by label;   shard s = rows floor(s R / S) .. floor((s+1) R / S),  S = N num_shards_per_partition

McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, arXiv:1602.05629, section 3: 100 clients, 2 shards of 300 MNIST
digits each, so most clients have two digits. flwr-datasets' ShardPartitioner. Differs: rows of a label are shuffled
before the cut, shards differ by one row if R / S is not an integer, and the rows of a client are in random order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import positive
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, shuffled_groups
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register
from fl.tensors import random


def shards(
    labels: np.ndarray, clients: int, num_shards_per_partition: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets). All rows are distributed; sizes differ by at most `num_shards_per_partition`."""
    positive(clients=clients, num_shards_per_partition=num_shards_per_partition)
    rows, total = len(labels), clients * num_shards_per_partition
    if total > rows:
        raise ValueError(
            f"clients: {clients} with {num_shards_per_partition} shards each need more than the {rows} rows"
        )
    classes, codes = class_codes(labels)
    by_label = shuffled_groups(codes, len(classes), seed, "shards/sort")[0]
    holder = np.empty(total, np.int64)
    holder[random.permutation(total, seed, "shards")] = np.arange(total) // num_shards_per_partition
    owners = np.empty(rows, np.int64)
    owners[by_label] = np.repeat(holder, np.diff(np.arange(total + 1) * rows // total))
    return shuffled_groups(owners, clients, seed, "shards/mix")


@register("partition", "shards")
@dataclass(frozen=True, kw_only=True)
class Shards(Partitioner):
    """A few shards of the rows sorted by label for each client.

    Args:
        clients: Number of clients; positive.
        num_shards_per_partition: Number of shards per client; positive.
        seed: Seed of the random choices.
    """

    clients: int
    num_shards_per_partition: int = 2
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        return Partition(*shards(dataset.labels, self.clients, self.num_shards_per_partition, self.seed))
