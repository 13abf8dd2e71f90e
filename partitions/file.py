"""A partition from a file, or written out in the configuration: row numbers per client.

    path: parts.npz     client (R,): whose each row is, -1 for nobody's   [is_test (R,) bool: its test rows]
                        or indices and offsets                            [test (N,): rows for testing, each client's last]
    path: parts.json    the same by name, or one list of rows per client: [[...], ...] or {"train": [[...], ...], "test": [[...], ...]}
    lists:              [[0, 5, 7], [1, 2]]

A path is looked for from the present folder, then from the data folder. Where the file says which rows are for testing they
are the client's test split, and splits.test stays 0. Row numbers count from 0 over the training set as `data` gives it: a published
partition of pooled sets (train, then test) needs pooled data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fl.data.dataset import Dataset
from fl.data.folder import data_folder
from fl.data.partition import Partition, grouped
from fl.registry import register

FORMS = "client [is_test], indices and offsets [test], or train [test]"


def from_lists(train: Sequence[Sequence[int]], test: Sequence[Sequence[int]] | None = None) -> Partition:
    """Rows of each client as listed."""
    test = [[]] * len(train) if test is None else test
    if len(train) != len(test):
        raise ValueError(f"test: {len(test)} lists beside {len(train)} of train; one for each client")
    if not len(train):
        raise ValueError("lists: there is none; one list of rows for each client")
    parts = [np.asarray(part) for pair in zip(train, test) for part in pair]
    for part in parts:
        if len(part) and (part.ndim != 1 or part.dtype.kind not in "iu"):
            raise ValueError(f"lists: {part.tolist()!r:.60} are not row numbers")
    sizes = np.array([len(part) for part in parts]).reshape(-1, 2)
    offsets = np.concatenate([[0], np.cumsum(sizes.sum(1))])
    return Partition(np.concatenate(parts).astype(np.int64), offsets, test=sizes[:, 1])


def from_owners(client: np.ndarray, is_test: np.ndarray | None = None) -> Partition:
    """client (R,): ids 0..N-1, negative for nobody's; is_test (R,) bool. A client's rows ascend, its test rows after the others."""
    client, clients = np.asarray(client).astype(np.int64), int(np.max(client, initial=-1)) + 1
    is_test = np.zeros(len(client), bool) if is_test is None else np.asarray(is_test).astype(bool)
    if client.shape != is_test.shape or client.ndim != 1:
        raise ValueError(f"is_test: {is_test.shape} beside client {client.shape}; one for each row")
    rows = np.flatnonzero(client >= 0)
    order, ends = grouped(2 * client[rows] + is_test[rows], 2 * clients)
    return Partition(rows[order], ends[::2], test=np.diff(ends)[1::2])


def from_named(arrays: Mapping[str, Any]) -> Partition:
    """A partition of what a file names."""
    names = set(arrays)
    if "client" in names:
        return from_owners(arrays["client"], arrays.get("is_test"))
    if "train" in names:
        return from_lists(arrays["train"], arrays.get("test"))
    if {"indices", "offsets"} <= names:
        indices, offsets = (np.asarray(arrays[name]).astype(np.int64) for name in ("indices", "offsets"))
        return Partition(
            indices, offsets, test=np.asarray(arrays["test"]).astype(np.int64) if "test" in names else None
        )
    raise ValueError(f"path: the file has {sorted(names)}; it needs {FORMS}")


def read(path: str | Path) -> Partition:
    """The partition in an .npz or .json file."""
    found = next((p for p in (Path(path), data_folder() / path) if p.is_file()), None)
    if found is None:
        raise ValueError(f"path: {path} is neither in {Path.cwd()} nor in the data folder {data_folder()}")
    if found.suffix == ".npz":
        with np.load(found, allow_pickle=False) as arrays:
            return from_named(dict(arrays))
    if found.suffix == ".json":
        content = json.loads(found.read_text())
        return from_named(content) if isinstance(content, dict) else from_lists(content)
    raise ValueError(f"path: {path} is neither .npz nor .json")


@register("partition", "file")
@dataclass(frozen=True, kw_only=True)
class File:
    """Row numbers per client from a file (`path`) or from the configuration (`lists`)."""

    path: str | None = None
    lists: tuple[tuple[int, ...], ...] | None = None

    example_config: ClassVar[dict[str, Any]] = {"partition.lists": ((5, 0, 3), (4, 9))}

    def __post_init__(self):
        if (self.path is None) == (self.lists is None):
            raise ValueError("path: give either path, an .npz or .json file, or lists")

    def split(self, dataset: Dataset) -> Partition:
        partition = from_lists(self.lists) if self.path is None else read(self.path)
        rows, most = len(dataset), int(partition.indices.max(initial=-1))
        if most >= rows:
            raise ValueError(
                f"{'lists' if self.path is None else 'path'}: row {most} is beyond the {rows} of the training set; "
                "a partition of pooled sets needs data that pool them"
            )
        partition.check(rows)
        untrained = np.flatnonzero((partition.train_slices()[1] == 0) & (partition.test > 0))
        if len(untrained):
            raise ValueError(f"test: client {untrained[0]} has test rows and none to train on")
        return partition
