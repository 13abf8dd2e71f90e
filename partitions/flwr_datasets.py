"""Partitioners of flwr-datasets in a run, and ours in flwr-datasets. Needs the extra `fl[flwr-datasets]`.

    partition:
      name: flwr
      partitioner: "flwr_datasets.partitioner:DirichletPartitioner"
      arguments: {num_partitions: 10, alpha: 0.3}

    fds = FederatedDataset(dataset="ylecun/mnist", partitioners={"train": as_flwr(Dirichlet(clients=10, alpha=0.3))})

A partitioner of flwr-datasets gets a table of the rows with the columns `y` (labels, if any), `client` (natural
owners, if any) and `row`; `partition_by` defaults to `y`. It loops over clients, so use ours for large numbers of
clients.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl import registry
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register


def from_flwr(partitioner: Any, dataset: Dataset) -> Partition:
    """Return the partition of our training set that a new Partitioner of flwr-datasets makes."""
    columns: dict[str, Any] = {"row": np.arange(len(dataset))}
    if "y" in dataset.train and dataset.train["y"].ndim == 1:
        columns["y"] = dataset.train["y"]
    if dataset.clients is not None:
        columns["client"] = dataset.clients
    partitioner.dataset = _hub("datasets").Dataset.from_dict(columns)
    parts = [np.asarray(partitioner.load_partition(c)["row"], np.int64) for c in range(partitioner.num_partitions)]
    return Partition(np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])]))


def as_flwr(partition: Any, dataset: Any = None, *, labels: str = "label", clients: str | None = None) -> Any:
    """Return a Partitioner of flwr-datasets that distributes rows as ours does.

    Args:
        partition: A `Partition` of the rows, or a partitioner with split().
        dataset: A datasets.Dataset; None if FederatedDataset sets it later.
        labels: Name of its column of labels.
        clients: Name of its column of natural owners.
    """

    base: Any = _hub("flwr_datasets.partitioner").Partitioner

    class Ours(base):
        made: Partition | None = None

        def _partition(self) -> Partition:
            if self.made is None:
                names = self.dataset.column_names
                arrays = {"x": np.zeros((len(self.dataset), 1), np.float32)}
                if labels in names:
                    arrays["y"] = np.asarray(self.dataset[labels])
                ids = None if clients is None else np.unique(np.asarray(self.dataset[clients]), return_inverse=True)[1]
                ours = partition if isinstance(partition, Partition) else partition.split(Dataset(arrays, clients=ids))
                ours.check(len(self.dataset))
                self.made = ours
            return self.made

        @property
        def num_partitions(self) -> int:
            return self._partition().num_clients

        def load_partition(self, partition_id: int) -> Any:
            ours = self._partition()
            if not 0 <= partition_id < ours.num_clients:
                raise ValueError(f"partition_id: {partition_id} is not one of 0..{ours.num_clients - 1}")
            return self.dataset.select(ours.indices[ours.offsets[partition_id] : ours.offsets[partition_id + 1]])

    made = Ours()
    if dataset is not None:
        made.dataset = dataset
    return made


def _hub(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"partitioner: the package {error.name} is missing; pip install flwr-datasets") from None


@register("partition", "flwr")
@dataclass(frozen=True, kw_only=True)
class Flwr(Partitioner):
    """A Partitioner of flwr-datasets.

    Args:
        partitioner: The class, as module:Class.
        arguments: Arguments of its constructor.
    """

    partitioner: str
    arguments: dict[str, Any]

    requires: ClassVar[tuple[str, ...]] = ("flwr_datasets", "datasets")
    example_config: ClassVar[dict[str, Any]] = {
        "partition.partitioner": "flwr_datasets.partitioner:IidPartitioner",
        "partition.arguments": {"num_partitions": 8},
    }
    leaves_rows: ClassVar[bool] = True

    def split(self, dataset: Dataset) -> Partition:
        where, colon, _ = self.partitioner.rpartition(":")
        if not colon:
            raise ValueError(
                f"partitioner: {self.partitioner!r} is not module:Class, as in flwr_datasets.partitioner:IidPartitioner"
            )
        _hub("flwr_datasets.partitioner")
        make = registry.lookup("partition", self.partitioner)
        by_label = {"partition_by": "y"} if "partition_by" in inspect.signature(make).parameters else {}
        try:
            return from_flwr(make(**by_label | self.arguments), dataset)
        except (TypeError, KeyError) as error:
            raise ValueError(f"arguments: {self.arguments} do not fit {self.partitioner}: {error}") from error
