"""The data say which rows have labels: y = -1 means unlabelled, as in scikit-learn; in real targets NaN does.

Only training rows may be without labels. Rows for evaluation are drawn among the labelled ones. Partitions by class
treat the unlabelled rows as one more class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.data.dataset import Dataset
from fl.data.labels import Labels, has_no_label
from fl.data.partition import Partition
from fl.registry import register


@register("labels", "given")
@dataclass(frozen=True, kw_only=True)
class GivenLabels(Labels):
    """Rows with y = -1 (or NaN) have no label; all others keep theirs."""

    in_data: ClassVar[bool] = True

    def keep(self, dataset: Dataset, partition: Partition) -> np.ndarray:
        return ~has_no_label(dataset.labels[partition.indices])
