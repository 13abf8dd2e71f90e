"""Columns of parties, in vertical federated learning: all parties hold the same rows, each holds its own columns.

    x (N, D)  -->  party 0, the active one: x[:, columns 0], y        party p, the client p - 1: x[:, columns p]

A party's columns lie in a file of their own. A worker opens the files of the parties that it works for, no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from fl.data.dataset import Dataset, file_origin, tensors
from fl.data.partition import Partition
from fl.data.temporary import temporary_array
from fl.tensors.pickling import map_tensor

BLOCK = 4096  # rows that are copied at once


def check_columns(columns: Sequence[np.ndarray], width: int) -> None:
    """Raise a `ValueError` unless the columns of the parties are disjoint, not empty, and in 0..width-1.

    >>> check_columns([np.array([0, 1]), np.array([1])], width=3)
    Traceback (most recent call last):
    ValueError: columns: column 1 is given twice, to the parties 0 and 1; the parties' columns must be disjoint
    """
    if len(columns) < 2:
        raise ValueError(f"columns: {len(columns)} party; the active party and at least one other party are needed")
    owner: dict[int, int] = {}
    for party, own in enumerate(columns):
        if np.ndim(own) != 1 or np.asarray(own).dtype.kind not in "iu":
            raise ValueError(f"columns: {own!r:.60} of party {party} are not numbers of columns")
        if not len(own):
            raise ValueError(f"columns: party {party} has none; give each of the {len(columns)} parties a column")
        for column in map(int, own):
            if not 0 <= column < width:
                raise ValueError(f"columns: {column} of party {party} is not one of the columns 0..{width - 1}")
            if column in owner:
                raise ValueError(
                    f"columns: column {column} is given twice, to the parties {owner[column]} and {party}; the "
                    "parties' columns must be disjoint"
                )
            owner[column] = party


class PartyArrays:
    """The arrays of each client, in files that are opened when they are first needed.

    Args:
        origins: (path, offset, shape, dtype) of `x` of each client.
    """

    def __init__(self, origins: Sequence[tuple[str, int, tuple[int, ...], str]]):
        self.origins = tuple(origins)
        self._open: dict[int, Mapping[str, torch.Tensor]] = {}

    def of(self, client: int) -> Mapping[str, torch.Tensor]:
        """Return the arrays of one client, {"x": (N, its columns)}."""
        if client not in self._open:
            self._open[client] = {"x": map_tensor(*self.origins[client])}
        return self._open[client]

    def __reduce__(self) -> tuple[type[PartyArrays], tuple[Any]]:
        return PartyArrays, (self.origins,)


def party_arrays(dataset: Dataset) -> PartyArrays | None:
    """Return the arrays of the clients of a vertical partition; None if clients hold rows."""
    files = [x for x in dataset.parties if isinstance(x, np.memmap)]
    assert len(files) == len(dataset.parties), "the columns of parties lie in files"
    return PartyArrays([file_origin(x) for x in files]) if files else None


def divided(
    dataset: Dataset, partition: Partition, columns: Sequence[np.ndarray], axis: int
) -> tuple[Dataset, Partition]:
    """Divide the columns among the parties, and return the data set of the active party and the rows of the others.

    Test rows of the data set become the test rows of all parties; they stand behind the training rows.

    Args:
        dataset: all columns.
        partition: rows of each passive party, the same for all.
        columns: columns of each party, the active party first.
        axis: axis of x along which columns are counted, negative.

    Raises:
        ValueError: the parties hold different rows, or the data set and the partition both have test rows.
    """
    rows = partition.indices.reshape(partition.num_clients, -1) if _even(partition) else None
    if rows is None or (rows != rows[0]).any():
        raise ValueError(
            "split: the parties hold different rows; in a vertical partition all parties hold the same rows"
        )
    parts = [dataset.train]
    if dataset.test is not None:
        if partition.test.any():
            raise ValueError("test: the data set has test rows of its own; set splits.test to 0")
        parts.append(dataset.test)
        held = np.arange(len(dataset), len(dataset) + len(dataset.test["x"]))
        rows = np.concatenate([rows, np.tile(held, (len(rows), 1))], 1)
        offsets = np.arange(len(rows) + 1) * rows.shape[1]
        partition = replace(partition, indices=rows.ravel(), offsets=offsets, test=np.full(len(rows), len(held)))
    parties = tuple(_in_file([part["x"] for part in parts], own, axis) for own in columns[1:])
    active = {name: np.concatenate([part[name] for part in parts]) for name in dataset.train}
    active["x"] = np.ascontiguousarray(active["x"].take(columns[0], axis))
    mine = replace(dataset, train=active, test=None, clients=None, held=None, names=None, parties=parties)
    return replace(mine, party_columns=tuple(np.asarray(own) for own in columns)), partition


def _even(partition: Partition) -> bool:
    return len(np.unique(np.diff(partition.offsets))) == 1


def _in_file(parts: Sequence[np.ndarray], columns: np.ndarray, axis: int) -> np.ndarray:
    """Return some columns of all parts, one after another, in a file of their own."""
    first, rows = parts[0], sum(map(len, parts))
    shape = list(first.shape)
    shape[axis] = len(columns)
    out = temporary_array((rows, *shape[1:]), first.dtype)
    at = 0
    for x in parts:
        for start in range(0, len(x), BLOCK):
            block = x[start : start + BLOCK].take(columns, axis)
            out[at : at + len(block)] = block
            at += len(block)
    out.flush()
    out.flags.writeable = False
    return out


@dataclass(frozen=True)
class ServerRows:
    """Rows of the server by name: for its own training, for validation, and its test set; {} for those it lacks."""

    train: Mapping[str, torch.Tensor]
    val: Mapping[str, torch.Tensor]
    test: Mapping[str, torch.Tensor]


def server_rows(dataset: Dataset, partition: Partition) -> ServerRows:
    """Return the rows of the server. In a vertical partition they are the active party's, ordered as the others'."""
    if not dataset.parties:
        return ServerRows(tensors(dataset.server), {}, tensors(dataset.test))

    def view(name: Literal["train", "val", "test"]) -> dict[str, torch.Tensor]:
        rows = partition.view_rows(0, name)
        arrays = {key: np.ascontiguousarray(array[rows]) for key, array in dataset.train.items()}
        return tensors(arrays) if len(rows) else {}

    return ServerRows(view("train"), view("val"), view("test"))
