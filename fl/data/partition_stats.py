"""Statistics of a partition: sizes, labels, and the heterogeneity of the clients.

    emd      1/2 sum_k |p_ck - p_k|    earth mover's distance between distributions over classes, which have distance 1
                                       (total variation); Zhao et al. 2018, arXiv:1806.00582, omit the 1/2
    entropy  - sum_k p_ck ln p_ck      nats; 0 for a single class, ln K for equal shares

p_c is the distribution of the labels of client c, p that of all clients together. There is no loop over clients and no
clients x classes matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl.data.grouping import class_codes
from fl.data.partition import Partition, owners


def held(labels: np.ndarray, partition: Partition) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Count the rows of each client and class.

    Rows whose label is -1 in the data are left out.

    Returns (classes (K,), client (M,), class index (M,), rows (M,)), one element per client and class with rows.
    """
    labelled, owner = labels[partition.indices], owners(partition)
    if labelled.min(initial=0) < 0:
        labelled, owner = labelled[labelled >= 0], owner[labelled >= 0]
    classes, codes = class_codes(labelled)
    pairs, rows = np.unique(owner * len(classes) + codes, return_counts=True)
    return classes, pairs // len(classes), pairs % len(classes), rows


def skew(labels: np.ndarray, partition: Partition) -> dict[str, np.ndarray]:
    """Return the number of `labels`, `emd` and `entropy` of each client that has rows, by name."""
    classes, client, which, rows = held(labels, partition)
    sizes = np.bincount(client, rows, partition.num_clients)
    overall = np.bincount(which, rows, len(classes)) / rows.sum()
    share = rows / sizes[client]
    each = {
        "labels": np.bincount(client, minlength=len(sizes)),
        "emd": np.bincount(client, np.maximum(share - overall[which], 0), len(sizes)),  # the excess equals the deficit
        "entropy": np.bincount(client, -share * np.log(share), len(sizes)),
    }
    return {name: values[sizes > 0] for name, values in each.items()}


def statistics(partition: Partition, labels: np.ndarray | None) -> dict[str, Any]:
    """Return the statistics of a partition as plain numbers; without labels only those of the sizes."""
    sizes = np.diff(partition.offsets)
    found: dict[str, Any] = {"clients": partition.num_clients, "rows": int(sizes.sum())}
    found |= {"train": int(partition.train_slices()[1].sum())}
    found |= {"val": int(partition.val.sum()), "test": int(partition.test.sum())}
    found["size"] = _spread(sizes)
    if partition.unlabelled.any():
        found["unlabelled"] = int(partition.unlabelled.sum())
        found["labelled"] = _spread(partition.train_slices()[1])
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and len(partition.indices):
        each = skew(labels, partition)
        found["classes"] = int((np.unique(labels[partition.indices]) >= 0).sum())
        found["labels"] = _spread(each["labels"])
        found |= {name: float(each[name].mean()) for name in ("emd", "entropy")}
    return found


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
