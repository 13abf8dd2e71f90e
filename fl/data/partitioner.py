"""Base of partitioners."""

from __future__ import annotations

from typing import Protocol

from fl.data.dataset import Dataset
from fl.data.partition import Partition


class Partitioner(Protocol):
    """A rule that distributes rows: a frozen dataclass registered under "partition"."""

    def split(self, dataset: Dataset) -> Partition:
        """Distribute the training rows among the clients."""
        raise NotImplementedError
