"""Open world: some classes have labels, and rows of all other classes have none. The model has outputs for all.

Cao, Brbic, Leskovec 2022, arXiv:2102.03526. Evaluation rows of unseen classes keep their labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import positive, within
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, hashed_rank
from fl.data.labels import Labels, training_positions
from fl.data.partition import Partition, owners
from fl.registry import register
from fl.tensors import random


@register("labels", "open_world")
@dataclass(frozen=True, kw_only=True)
class OpenWorld(Labels):
    """Rows of seen classes keep their labels, or a part of them does.

    Args:
        seen: Number of seen classes, positive: those with the lowest numbers; or the classes, as a list.
        share: Fraction of each client's rows of seen classes that keep their labels, in (0, 1].
        seed: Seed of the draw of these rows.
    """

    seen: int | tuple[int, ...]
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seen, int):
            positive(seen=self.seen)
        within("(0, 1]", share=self.share)

    def keep(self, dataset: Dataset, partition: Partition) -> np.ndarray:
        classes, codes = class_codes(dataset.labels)
        if isinstance(self.seen, int):
            if self.seen > len(classes):
                raise ValueError(f"seen: {self.seen} is more than the {len(classes)} classes")
            seen = classes[: self.seen]
        else:
            seen = np.array(self.seen, np.int64)
            if len(wrong := np.setdiff1d(seen, classes)):
                raise ValueError(f"seen: {wrong[0]} is not one of the {len(classes)} classes {classes[:10].tolist()}")
        position = training_positions(partition)
        position = position[np.isin(classes, seen)[codes[partition.indices[position]]]]
        owner, words = owners(partition)[position], random.hash64(self.seed, "labels", partition.indices[position])
        most = np.ceil(self.share * np.bincount(owner, minlength=partition.num_clients)).astype(np.int64)
        found = np.zeros(len(partition.indices), bool)
        found[position] = hashed_rank(owner, partition.num_clients, words) < most[owner]
        return found
