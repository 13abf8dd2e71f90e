"""A few classes per client: each holds exactly k classes, and a class is shared equally among its holders.

    client c holds S_c, |S_c| = k       a class of n_k rows with h_k holders: floor or ceil of n_k / h_k rows for each

Li, Diao, Chen, He 2022, arXiv:2102.02079 ("#C = k"), as flwr-datasets' PathologicalPartitioner, whose names these are:

    random                k of the K classes for each client
    first-deterministic   class (c mod K) and k - 1 others: with N >= K every class has a holder (the paper's)
    deterministic         classes c, c + 1, ..., c + k - 1 (mod K)

A class without a holder is nobody's, as there. Differs: rows are shuffled before they are shared, and the draws are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition, coded, dealt
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
    """(indices, offsets); every client has rows of exactly `num_classes_per_partition` classes, in random order."""
    classes, codes = coded(labels)
    if not 1 <= clients <= len(labels):
        raise ValueError(f"clients: {clients} is not in 1..{len(labels)}, the number of rows")
    if not 1 <= num_classes_per_partition <= len(classes):
        raise ValueError(
            f"num_classes_per_partition: {num_classes_per_partition} is not in 1..{len(classes)}, the number of classes"
        )
    held = holdings(clients, len(classes), num_classes_per_partition, class_assignment_mode, seed)
    return dealt(codes, equal_shares(held, np.bincount(codes, minlength=len(classes))), seed, "pathological")


def holdings(clients: int, classes: int, k: int, mode: str = "random", seed: int = 0) -> np.ndarray:
    """(N, K) bool: which k classes each client holds."""
    if mode not in MODES:
        raise ValueError(f"class_assignment_mode: {mode!r} is not one of {list(MODES)}")
    own, every = np.arange(clients)[:, None], np.arange(classes)
    if mode == "deterministic":
        return (every - own) % classes < k
    words = random.hash64(seed, "pathological", own, every)
    if mode == "first-deterministic":
        words[np.arange(clients), np.arange(clients) % classes] = 0
    held = np.zeros((clients, classes), bool)
    np.put_along_axis(held, np.argpartition(words, k - 1, axis=1)[:, :k], True, axis=1)
    return held


def equal_shares(held: np.ndarray, supply: np.ndarray) -> np.ndarray:
    """(N, K) int64: every class of supply[k] rows in shares that differ by one at most, the first holders' the larger."""
    holders = held.sum(0)
    if (holders > supply).any():
        k = int((holders - supply).argmax())
        raise ValueError(
            f"clients: {holders[k]} hold class {k} (the {k + 1}. of {len(supply)}), which has {supply[k]} rows; take fewer "
            "clients or fewer classes for each, or class_assignment_mode='deterministic', which spreads them evenly"
        )
    share, over = np.divmod(supply, np.maximum(holders, 1))
    return held * (share + (np.cumsum(held, 0) <= over))


@register("partition", "pathological")
@dataclass(frozen=True, kw_only=True)
class Pathological:
    """Each client holds exactly `num_classes_per_partition` classes."""

    clients: int
    num_classes_per_partition: int
    class_assignment_mode: Literal["random", "deterministic", "first-deterministic"] = "random"
    seed: int = 0

    example_config: ClassVar[dict[str, int]] = {"partition.num_classes_per_partition": 2}

    def split(self, dataset: Dataset) -> Partition:
        arguments = (self.clients, self.num_classes_per_partition, self.class_assignment_mode, self.seed)
        return Partition(*pathological(dataset.labels, *arguments))
