"""flwr-datasets' partitioners as ours, and ours as theirs. Needs the extra `fl[flwr-datasets]`.

    partition: {name: flwr, partitioner: "flwr_datasets.partitioner:DirichletPartitioner", arguments: {num_partitions: 10, alpha: 0.3}}

    fds = FederatedDataset(dataset="ylecun/mnist", partitioners={"train": as_flwr(Dirichlet(clients=10, alpha=0.3))})

Theirs sees a table of the rows with the columns `y` (labels, where there are), `client` (natural ids, where there are) and `row`; `partition_by`
is `y` unless given. Their loops run over clients: for many of them take ours.
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
from fl.registry import register


def from_flwr(partitioner: Any, dataset: Dataset) -> Partition:
    """The partition that a fresh Partitioner of flwr-datasets makes of our training set."""
    columns: dict[str, Any] = {"row": np.arange(len(dataset))}
    if "y" in dataset.train and dataset.train["y"].ndim == 1:
        columns["y"] = dataset.train["y"]
    if dataset.clients is not None:
        columns["client"] = dataset.clients
    partitioner.dataset = _hub("datasets").Dataset.from_dict(columns)
    parts = [np.asarray(partitioner.load_partition(c)["row"], np.int64) for c in range(partitioner.num_partitions)]
    return Partition(np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])]))


def as_flwr(partition: Any, dataset: Any = None, *, labels: str = "label", clients: str | None = None) -> Any:
    """A Partitioner of flwr-datasets that shares out as ours does: `partition` is a `Partition` of the rows, or a part that has
    split(). `dataset` is a datasets.Dataset, or comes later (FederatedDataset sets it); `labels` and `clients` name its columns."""

    class Ours(_hub("flwr_datasets.partitioner").Partitioner):
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
        raise ValueError(f"partitioner: there is no {error.name} here; pip install 'fl[flwr-datasets]'") from None


@register("partition", "flwr")
@dataclass(frozen=True, kw_only=True)
class Flwr:
    """A Partitioner of flwr-datasets (`module:Class`) with its `arguments`."""

    partitioner: str
    arguments: dict[str, Any]

    requires: ClassVar[tuple[str, ...]] = ("flwr_datasets", "datasets")
    example_config: ClassVar[dict[str, Any]] = {
        "partition.partitioner": "flwr_datasets.partitioner:IidPartitioner",
        "partition.arguments": {"num_partitions": 8},
    }

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
            raise ValueError(f"arguments: {self.arguments} do not suit {self.partitioner}: {error}") from error
