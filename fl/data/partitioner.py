"""Base of partitioners."""

from __future__ import annotations

from fl.data.dataset import Dataset
from fl.data.partition import Partition


class Partitioner:
    """Base of partitioners: frozen dataclasses registered under "partition"."""

    def split(self, dataset: Dataset) -> Partition:
        """Distribute the training rows among the clients."""
        raise NotImplementedError
