"""A partition from a file or from the configuration: row numbers per client.

    path: parts.npz     client (R,): owner of each row, -1 for none    [is_test (R,) bool: test rows]
                        or indices and offsets                         [test (N,): each client's number of test rows]
    path: parts.json    the same by name, or one list of rows per client:
                        [[...], ...] or {"train": [[...], ...], "test": [[...], ...]}
    lists:              [[0, 5, 7], [1, 2]]

If the file names test rows, they are the clients' test split, and splits.test stays 0. Row numbers count from 0 over
the training set of `data`. A published partition of pooled sets (train, then test) needs pooled data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fl.data.archives import read_npz
from fl.data.dataset import Dataset
from fl.data.folder import locate
from fl.data.grouping import group_by
from fl.data.partition import Partition, whole
from fl.data.partitioner import Partitioner
from fl.registry import register

FORMS = "client [is_test], indices and offsets [test], or train [test]"


def from_lists(train: Sequence[Sequence[int]], test: Sequence[Sequence[int]] | None = None) -> Partition:
    """Return the partition with the listed rows of each client.

    >>> from_lists([[0, 5], [1]], [[7], []]).indices.tolist()
    [0, 5, 7, 1]
    """
    test = [[]] * len(train) if test is None else test
    if len(train) != len(test):
        raise ValueError(f"test: {len(test)} lists, but {len(train)} lists of train; one per client is needed")
    if not len(train):
        raise ValueError("lists: there are none; one list of rows per client is needed")
    parts = [np.asarray(part) for pair in zip(train, test) for part in pair]
    for part in parts:
        if len(part) and (part.ndim != 1 or part.dtype.kind not in "iu"):
            raise ValueError(f"lists: {part.tolist()!r:.60} are not row numbers")
    sizes = np.array([len(part) for part in parts]).reshape(-1, 2)
    offsets = np.concatenate([[0], np.cumsum(sizes.sum(1))])
    return Partition(np.concatenate(parts).astype(np.int64), offsets, test=sizes[:, 1])


def from_owners(client: np.ndarray, is_test: np.ndarray | None = None) -> Partition:
    """Return the partition with the given owners. The rows of a client ascend, its test rows come last.

    Args:
        client: (R,) owner of each row, 0..N-1; negative: the row is not used.
        is_test: (R,) bool, whether a row is a test row of its owner.
    """
    client = whole("client", client)
    clients = int(client.max(initial=-1)) + 1
    is_test = np.zeros(len(client), bool) if is_test is None else np.asarray(is_test).astype(bool)
    if client.shape != is_test.shape or client.ndim != 1:
        raise ValueError(f"is_test: shape {is_test.shape}, but client has shape {client.shape}; one per row is needed")
    rows = np.flatnonzero(client >= 0)
    order, ends = group_by(2 * client[rows] + is_test[rows], 2 * clients)
    return Partition(rows[order], ends[::2], test=np.diff(ends)[1::2])


def from_named(arrays: Mapping[str, Any], rows: int | None = None) -> Partition:
    """Return the partition of the arrays of a file, by their names. `client` needs one entry per row, if known."""
    names = set(arrays)
    if "client" in names:
        if rows is not None and len(arrays["client"]) < rows:
            raise ValueError(
                f"client: {len(arrays['client'])} entries for the {rows} rows of the training set; give each row its "
                "owner, or -1 for none"
            )
        return from_owners(arrays["client"], arrays.get("is_test"))
    if "train" in names:
        return from_lists(arrays["train"], arrays.get("test"))
    if {"indices", "offsets"} <= names:
        return Partition(arrays["indices"], arrays["offsets"], test=arrays.get("test", np.zeros(0, np.int64)))
    raise ValueError(f"path: the file has {sorted(names)}; it needs {FORMS}")


def read(path: str | Path, rows: int | None = None) -> Partition:
    """Read the partition of a training set of that many rows in an .npz or .json file."""
    found = locate(str(path))
    if found.suffix == ".npz":
        return from_named(read_npz(found), rows)
    if found.suffix == ".json":
        content = json.loads(found.read_text())
        return from_named(content, rows) if isinstance(content, dict) else from_lists(content)
    raise ValueError(f"path: {path} must end in .npz or .json")


@register("partition", "file")
@dataclass(frozen=True, kw_only=True)
class File(Partitioner):
    """Row numbers per client from a file or from the configuration; give one of both.

    Args:
        path: An .npz or .json file, relative to the current directory or to the data folder.
        lists: One list of row numbers (from 0) for each client, in place of `path`.
    """

    path: str | None = None
    lists: tuple[tuple[int, ...], ...] | None = None

    example_config: ClassVar[dict[str, Any]] = {"partition.lists": ((5, 0, 3), (4, 9))}

    def __post_init__(self) -> None:
        if (self.path is None) == (self.lists is None):
            raise ValueError("path: give either `path`, an .npz or .json file, or `lists`")

    leaves_rows: ClassVar[bool] = True

    def split(self, dataset: Dataset) -> Partition:
        rows = len(dataset)
        partition = read(self.path, rows) if self.path is not None else from_lists(self.lists or ())
        most = int(partition.indices.max(initial=-1))
        if most >= rows:
            raise ValueError(
                f"{'lists' if self.path is None else 'path'}: row {most} exceeds the {rows} rows of the training set; "
                "a partition of pooled sets needs pooled data"
            )
        partition.check(rows)
        untrained = np.flatnonzero((partition.train_slices()[1] == 0) & (partition.test > 0))
        if len(untrained):
            raise ValueError(f"test: client {untrained[0]} has test rows but no training rows")
        return partition
