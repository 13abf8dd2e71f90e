"""Several image sets of the same classes as one, each a domain: MNIST, USPS and scikit-learn's digits, say.

    row of set d:   x resized to channels x side x side (bilinear),  y as it is,  domain = d

The clients by nature are `clients` for each domain, with equal shares of its rows, so that `partition: natural` gives clients that differ in their
features; other partitions mix the domains, and `stream: {name: domains, by: domain}` meets one after another. Where all sets have test sets
theirs together are the server's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Arrays, Dataset, Loader, as_dataset
from fl.data.images import resized
from fl.registry import register
from fl.tensors import random


@register("data", "domains")
@dataclass(frozen=True, kw_only=True)
class Domains:
    sets: tuple[Loader, ...]
    side: int = 28
    channels: int = 1
    clients: int = 1

    def __post_init__(self):
        if len(self.sets) < 2:
            raise ValueError(f"sets: {len(self.sets)} of them; domains are two or more")
        for name in ("side", "channels", "clients"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    def load(self) -> Dataset:
        loaded = [as_dataset(each.load()) for each in self.sets]
        for d, dataset in enumerate(loaded):
            if dataset.train["x"].ndim != 4 or dataset.labels.ndim != 1:
                raise ValueError(
                    f"sets: {dataset.train['x'].shape[1:]} of set {d} are no images (channels, height, width) of one class"
                )
        train = self._together([dataset.train for dataset in loaded])
        tests = [dataset.test for dataset in loaded if dataset.test is not None]
        owners = [
            d * self.clients + random.permutation(len(dataset), "domains", d) % self.clients
            for d, dataset in enumerate(loaded)
        ]
        return Dataset(train, self._together(tests) if len(tests) == len(loaded) else None, np.concatenate(owners))

    def _together(self, parts: list[Arrays]) -> Arrays:
        return {
            "x": np.concatenate([resized(part["x"], self.channels, self.side) for part in parts]),
            "y": np.concatenate([part["y"] for part in parts]),
            "domain": np.repeat(np.arange(len(parts)), [len(part["y"]) for part in parts]),
        }
