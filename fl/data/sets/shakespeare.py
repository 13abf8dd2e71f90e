"""Shakespeare's plays, one client per role (play, speaker): 1,339 roles, 4.25 million characters.

    next       x: 80 characters,  y: the next one                                        task: classification
    sequence   x: 80 characters,  y: the next one at each position, -1 if there is none  task: language_modelling

McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, arXiv:1602.05629; Caldas et al. 2018 (LEAF), arXiv:1812.01097. The
first 80 % of a role's speeches (rounded down, at least one) are for training, the others are its own test rows. Each
part is joined with newlines, and no sample lies in both. The file shakespeare/shakespeare_by_role.jsonl.gz of the data
folder has a play, a role and its speeches in each line.
Differs from LEAF: another edition of the text; the split is by speeches, LEAF's is by samples, whose windows overlap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.checks import at_least, not_negative, one_of
from fl.data.archives import open_gzip_text
from fl.data.chars import encode, next_windows, sequence_windows
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import find
from fl.registry import register
from fl.tensors import random

TRAIN = 0.8


@register("data", "shakespeare")
@dataclass(frozen=True, kw_only=True)
class Shakespeare(Loader):
    """Shakespeare's plays for next-character prediction, one client per role.

    Args:
        target: `next` or `sequence`; see the module.
        length: Characters per sample; at least 1.
        stride: Characters between the starts of samples; at least 1. Default: `length` for `sequence`, otherwise 10.
            LEAF uses 1, which gives 4.1 million samples.
        min_samples: Leave out roles with fewer training samples; at least 1.
        max_samples: Maximum number of training samples and of test samples per role; at least 1. Default: no limit.
        clients: Number of roles, drawn at random; at least 1. Default: all.
        server_test: Number of random test rows that are also the server's test set. 0: the server has none.
        seed: Seed of the random choices.
    """

    target: Literal["next", "sequence"] = "next"
    length: int = 80
    stride: int | None = None
    min_samples: int = 1
    max_samples: int | None = None
    clients: int | None = None
    server_test: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(("next", "sequence"), target=self.target)
        at_least(1, length=self.length, stride=self.stride, min_samples=self.min_samples)
        at_least(1, max_samples=self.max_samples, clients=self.clients)
        not_negative(server_test=self.server_test, hint="0 leaves the server without test rows")

    def load(self) -> Dataset:
        with open_gzip_text(find("shakespeare", "shakespeare_by_role.jsonl.gz")) as file:
            roles = [self._samples(json.loads(line)["speeches"]) for line in file]
        kept = np.flatnonzero([len(train[1]) >= self.min_samples for train, _ in roles])
        if self.clients is not None:
            if self.clients > len(kept):
                raise ValueError(
                    f"clients: {self.clients} is more than the {len(kept)} roles with min_samples {self.min_samples}; "
                    "leave it out to use all"
                )
            kept = np.sort(kept[random.permutation(len(kept), self.seed, "shakespeare", "clients")[: self.clients]])
        if not len(kept):
            raise ValueError(f"min_samples: no role has {self.min_samples} samples; use a smaller number")
        parts = [part for role in kept for part in roles[role]]  # train, test, train, test, ...
        sizes = [len(y) for _, y in parts]
        train = {"x": np.concatenate([x for x, _ in parts]), "y": np.concatenate([y for _, y in parts])}
        held = np.repeat(np.tile([False, True], len(kept)), sizes)
        return Dataset(
            train, self._server(train, np.flatnonzero(held)), np.repeat(np.repeat(kept, 2), sizes), held=held
        )

    def _samples(self, speeches: list[str]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Return ((x, y) for training, (x, y) for testing) of one role."""
        cut = max(1, int(TRAIN * len(speeches)))
        windows = next_windows if self.target == "next" else sequence_windows
        stride = self.stride or (10 if self.target == "next" else self.length)
        parts = (windows(encode("\n".join(part)), self.length, stride) for part in (speeches[:cut], speeches[cut:]))
        return tuple((x[: self.max_samples], y[: self.max_samples]) for x, y in parts)

    def _server(self, train: Arrays, rows: np.ndarray) -> Arrays | None:
        if not self.server_test:
            return None
        if self.server_test > len(rows):
            raise ValueError(f"server_test: {self.server_test} is not in 0..{len(rows)}, the number of test rows")
        drawn = np.sort(rows[random.permutation(len(rows), self.seed, "shakespeare", "test")[: self.server_test]])
        return {name: array[drawn] for name, array in train.items()}
