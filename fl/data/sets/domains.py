"""Several image sets with the same classes as one data set, each a domain, for example MNIST, USPS and digits.

    row of set d:   x resized to channels x side x side (bilinear),  y unchanged,  domain = d

Each domain has `clients` natural owners with equal shares of its rows, so `partition: natural` gives clients that
differ in their features. Other partitions mix the domains, and `stream: {name: domains, by: domain}` presents them one
after another. If all sets have test rows, the server tests on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import at_least
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.forms import as_dataset
from fl.data.images import resized
from fl.registry import register
from fl.tensors import random


@register("data", "domains")
@dataclass(frozen=True, kw_only=True)
class Domains(Loader):
    """Several image sets as domains of one data set.

    Args:
        sets: Two or more image data sets.
        side: Height and width of the images in pixels; at least 1.
        channels: Number of channels; at least 1.
        clients: Number of natural owners per domain; at least 1.
    """

    sets: tuple[Loader, ...]
    side: int = 28
    channels: int = 1
    clients: int = 1

    def __post_init__(self) -> None:
        if len(self.sets) < 2:
            raise ValueError(f"sets: {len(self.sets)} data sets; at least two are needed")
        at_least(1, side=self.side, channels=self.channels, clients=self.clients)

    def load(self) -> Dataset:
        loaded = [as_dataset(each.load()) for each in self.sets]
        for d, dataset in enumerate(loaded):
            if dataset.train["x"].ndim != 4 or dataset.labels.ndim != 1:
                raise ValueError(
                    f"sets: samples of set {d} have shape {dataset.train['x'].shape[1:]}; "
                    "they must be images (channels, height, width), each of one class"
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
