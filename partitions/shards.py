"""Shards: rows sorted by label are cut into equal shards, and each client is dealt a few of them.

    sort by label;   shard s = rows floor(s R / S) .. floor((s+1) R / S),  S = N num_shards_per_partition;   a random deal

McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, arXiv:1602.05629, section 3: 100 clients, 2 shards of 300 MNIST digits each, so
that most have two digits. flwr-datasets' ShardPartitioner. Differs: rows of a label are in random order before the cut, shards
differ by one row where R / S is no whole number, and a client's rows are in random order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, shuffled_groups
from fl.data.partition import Partition
from fl.registry import register
from fl.tensors import random


def shards(
    labels: np.ndarray, clients: int, num_shards_per_partition: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(indices, offsets); all rows are given, sizes differ by `num_shards_per_partition` at most."""
    if clients < 1:
        raise ValueError(f"clients: {clients} is not positive")
    if num_shards_per_partition < 1:
        raise ValueError(f"num_shards_per_partition: {num_shards_per_partition} is not positive")
    rows, total = len(labels), clients * num_shards_per_partition
    if total > rows:
        raise ValueError(f"clients: {clients} of {num_shards_per_partition} shards each need more than the {rows} rows")
    classes, codes = class_codes(labels)
    by_label = shuffled_groups(codes, len(classes), seed, "shards/sort")[0]
    holder = np.empty(total, np.int64)
    holder[random.permutation(total, seed, "shards")] = np.arange(total) // num_shards_per_partition
    owners = np.empty(rows, np.int64)
    owners[by_label] = np.repeat(holder, np.diff(np.arange(total + 1) * rows // total))
    return shuffled_groups(owners, clients, seed, "shards/mix")


@register("partition", "shards")
@dataclass(frozen=True, kw_only=True)
class Shards:
    """Rows sorted by label, `num_shards_per_partition` stretches of them for each client."""

    clients: int
    num_shards_per_partition: int = 2
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        return Partition(*shards(dataset.labels, self.clients, self.num_shards_per_partition, self.seed))
