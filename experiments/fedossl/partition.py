"""The classes of the experiment: clients share six seen classes and one unseen one; three others are local."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import deal_classes
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner

HOLDERS = {6: (0, 1, 2, 3, 4), 7: (0, 1), 8: (2, 3), 9: (4,)}  # unseen class -> its clients


@dataclass(frozen=True, kw_only=True)
class OpenClasses(Partitioner):
    """Five clients. Classes 0 to 5 and 6 are everywhere, 7 at clients 0 and 1, 8 at 2 and 3, 9 at 4.

    Args:
        seen_rows: rows of each class 0 to 5 at each client.
        unseen_rows: rows of each unseen class, in equal shares over its clients.
        seed: seed of the draw of rows.
    """

    seen_rows: int = 100
    unseen_rows: int = 250
    seed: int = 0

    leaves_rows: ClassVar[bool] = True

    def split(self, dataset: Dataset) -> Partition:
        counts = np.zeros((5, 10), np.int64)
        counts[:, :6] = self.seen_rows
        for label, clients in HOLDERS.items():
            counts[list(clients), label] = self.unseen_rows // len(clients)
        return Partition(*deal_classes(dataset.labels, counts, self.seed, "open"))
