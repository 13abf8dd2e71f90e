"""Shakespeare's plays, a role (play, speaker) a client by nature: 1,339 roles, 4.25 million characters, from the data folder.

    next       x: 80 characters,  y: the one that follows                          task: classification
    sequence   x: 80 characters,  y: at each place the one that follows, else -1   task: language_modelling

McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, arXiv:1602.05629; Caldas et al. 2018 (LEAF), arXiv:1812.01097. The first 80 % of
a role's speeches (rounded down, at least one) train, the others are its own test rows; each part is joined by newlines, and no
sample lies in both. Read from shakespeare/shakespeare_by_role.jsonl.gz: a play, a role and its speeches in each line.
Differs from LEAF: another edition of the text, and the split is by speeches, theirs by samples (where the windows overlap).
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.data.chars import encode, next_windows, sequence_windows
from fl.data.dataset import Arrays, Dataset
from fl.data.folder import find
from fl.registry import register
from fl.tensors import random

TRAIN = 0.8


@register("data", "shakespeare")
@dataclass(frozen=True, kw_only=True)
class Shakespeare:
    """`stride`: characters between the starts of samples (default: of sequences their length, else 10; LEAF's is 1, that are 4.1
    million samples). Roles with fewer than `min_samples` training samples are left out; of the others `clients` are drawn by `seed`
    (default: all), each with its first `max_samples` to train and as many to test (default: all).
    `server_test`: so many of all test rows, drawn by `seed`, are the server's test set too (default: it has none)."""

    target: Literal["next", "sequence"] = "next"
    length: int = 80
    stride: int | None = None
    min_samples: int = 1
    max_samples: int | None = None
    clients: int | None = None
    server_test: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.target not in ("next", "sequence"):
            raise ValueError(f"target: {self.target!r} is not one of ['next', 'sequence']")
        for name in ("length", "stride", "min_samples", "max_samples", "clients"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not at least 1")
        if self.server_test < 0:
            raise ValueError(f"server_test: {self.server_test} is negative; 0 leaves the server without test rows")

    def load(self) -> Dataset:
        with gzip.open(find("shakespeare", "shakespeare_by_role.jsonl.gz"), "rt", encoding="utf-8") as file:
            roles = [self._samples(json.loads(line)["speeches"]) for line in file]
        kept = np.flatnonzero([len(train[1]) >= self.min_samples for train, _ in roles])
        if self.clients is not None:
            if self.clients > len(kept):
                raise ValueError(
                    f"clients: {self.clients} is more than the {len(kept)} roles with min_samples {self.min_samples}; "
                    "leave it out to take all"
                )
            kept = np.sort(kept[random.permutation(len(kept), self.seed, "shakespeare", "clients")[: self.clients]])
        if not len(kept):
            raise ValueError(f"min_samples: no role has {self.min_samples} samples; take a smaller one")
        parts = [part for role in kept for part in roles[role]]  # train, test, train, test, ...
        sizes = [len(y) for _, y in parts]
        train = {"x": np.concatenate([x for x, _ in parts]), "y": np.concatenate([y for _, y in parts])}
        held = np.repeat(np.tile([False, True], len(kept)), sizes)
        return Dataset(
            train, self._server(train, np.flatnonzero(held)), np.repeat(np.repeat(kept, 2), sizes), held=held
        )

    def _samples(self, speeches: list[str]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """((x, y) to train, (x, y) to test) of a role."""
        cut = max(1, int(TRAIN * len(speeches)))
        windows = next_windows if self.target == "next" else sequence_windows
        stride = self.stride or (10 if self.target == "next" else self.length)
        parts = (windows(encode("\n".join(part)), self.length, stride) for part in (speeches[:cut], speeches[cut:]))
        return tuple((x[: self.max_samples], y[: self.max_samples]) for x, y in parts)

    def _server(self, train: Arrays, rows: np.ndarray) -> Arrays | None:
        if not self.server_test:
            return None
        if self.server_test > len(rows):
            raise ValueError(f"server_test: {self.server_test} is not in 0..{len(rows)}, the clients' test rows")
        drawn = np.sort(rows[random.permutation(len(rows), self.seed, "shakespeare", "test")[: self.server_test]])
        return {name: array[drawn] for name, array in train.items()}
