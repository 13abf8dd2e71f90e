"""A few classes per client: each client holds exactly k classes, and a class is split equally among its holders.

    client c holds S_c, |S_c| = k       a class of n_k rows with h_k holders: floor or ceil of n_k / h_k rows for each

Li, Diao, Chen, He 2022, arXiv:2102.02079 ("#C = k"), with the names of flwr-datasets' PathologicalPartitioner:

    random                k random classes of the K classes for each client
    first-deterministic   class (c mod K) and k - 1 random others: with N >= K each class has a holder (as in the paper)
    deterministic         classes c, c + 1, ..., c + k - 1 (mod K)

A class without a holder is not used, as there. Differs: rows are shuffled before they are distributed; the draws
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl.checks import one_of
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, deal_classes
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register
from fl.tensors import random

MODES = ("random", "deterministic", "first-deterministic")


def pathological(
    labels: np.ndarray,
    clients: int,
    num_classes_per_partition: int,
    class_assignment_mode: str = "random",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets). Each client has exactly `num_classes_per_partition` classes; its rows are shuffled."""
    classes, codes = class_codes(labels)
    if not 1 <= clients <= len(labels):
        raise ValueError(f"clients: {clients} is not in 1..{len(labels)}, the number of rows")
    if not 1 <= num_classes_per_partition <= len(classes):
        raise ValueError(
            f"num_classes_per_partition: {num_classes_per_partition} is not in 1..{len(classes)}, the number of classes"
        )
    held = class_holders(clients, len(classes), num_classes_per_partition, class_assignment_mode, seed)
    return deal_classes(codes, equal_shares(held, np.bincount(codes, minlength=len(classes))), seed, "pathological")


def class_holders(clients: int, classes: int, k: int, mode: str = "random", seed: int = 0) -> np.ndarray:
    """Return (N, K) bool: the k classes that each client holds.

    >>> class_holders(3, 3, 2, "deterministic").astype(int).tolist()
    [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    """
    one_of(MODES, class_assignment_mode=mode)
    client_ids, class_ids = np.arange(clients)[:, None], np.arange(classes)
    if mode == "deterministic":
        return (class_ids - client_ids) % classes < k
    words = random.hash64(seed, "pathological", client_ids, class_ids)
    if mode == "first-deterministic":
        words[np.arange(clients), np.arange(clients) % classes] = 0
    held = np.zeros((clients, classes), bool)
    np.put_along_axis(held, np.argpartition(words, k - 1, axis=1)[:, :k], True, axis=1)
    return held


def equal_shares(held: np.ndarray, supply: np.ndarray) -> np.ndarray:
    """Return (N, K) int64: the rows of each class in shares that differ by at most one, larger ones first.

    >>> equal_shares(np.array([[True], [True]]), np.array([5])).tolist()
    [[3], [2]]
    """
    holders = held.sum(0)
    if (holders > supply).any():
        k = int((holders - supply).argmax())
        raise ValueError(
            f"clients: {holders[k]} hold class {k} (the {k + 1}. of {len(supply)}), which has {supply[k]} rows; "
            "use fewer clients, fewer classes per client, or class_assignment_mode='deterministic', which spreads them"
        )
    share, over = np.divmod(supply, np.maximum(holders, 1))
    return held * (share + (np.cumsum(held, 0) <= over))


@register("partition", "pathological")
@dataclass(frozen=True, kw_only=True)
class Pathological(Partitioner):
    """A fixed number of classes per client, each class in equal shares.

    Args:
        clients: Number of clients; at least 1.
        num_classes_per_partition: Number of classes of each client, from 1 to the number of classes.
        class_assignment_mode: `random`: any classes; `first-deterministic`: client c has class c mod K and others at
            random; `deterministic`: classes c, c + 1, ... mod K.
        seed: Seed of the random choices.
    """

    clients: int
    num_classes_per_partition: int
    class_assignment_mode: Literal["random", "deterministic", "first-deterministic"] = "random"
    seed: int = 0

    example_config: ClassVar[dict[str, int]] = {"partition.num_classes_per_partition": 2}
    leaves_rows: ClassVar[bool] = True

    def split(self, dataset: Dataset) -> Partition:
        arguments = (self.clients, self.num_classes_per_partition, self.class_assignment_mode, self.seed)
        return Partition(*pathological(dataset.labels, *arguments))
