"""A data set whose server also has rows of another, public data set.

    train, test    those of `of`
    server         x and y of the rows that `public` has for the server; without such rows, its training rows

`side` resizes all images (bilinear), so that both have one shape. Labels of the two sets have nothing to do with each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fl.checks import at_least
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.forms import as_dataset
from fl.data.images import resized
from fl.data.sets.noise import RandomData
from fl.registry import register


@register("data", "public")
@dataclass(frozen=True, kw_only=True)
class Public(Loader):
    """Rows of clients from one data set, rows of the server from another.

    Args:
        of: The data set of the clients.
        public: The data set of the server, with samples of the same shape.
        side: Height and width of all images in pixels; at least 1. Default: their own size.
    """

    of: Loader
    public: Loader
    side: int | None = None

    example_config: ClassVar[Mapping[str, Any]] = {
        "data.of": RandomData(shape=(1, 6, 6), clients=3),
        "data.public": RandomData(shape=(1, 8, 8), clients=2, seed=1),
        "data.side": 4,
    }

    def __post_init__(self) -> None:
        at_least(1, side=self.side)

    def load(self) -> Dataset:
        of, public = as_dataset(self.of.load()), as_dataset(self.public.load())
        rows = public.server or public.train
        server = self._sized({name: rows[name] for name in ("x", "y") if name in rows}, "public")
        of = of.mapped(lambda part, arrays: self._sized(arrays, "of"))
        if (own := of.train["x"].shape[1:]) != (other := server["x"].shape[1:]):
            raise ValueError(f"public: its samples have shape {other}, those of `of` {own}; set side, or another set")
        return replace(of, server=server)

    def _sized(self, arrays: Arrays, name: str) -> Arrays:
        if self.side is None:
            return arrays
        x = arrays["x"]
        if x.ndim != 4 or x.dtype.kind != "f":
            raise ValueError(f"side: samples of `{name}` have shape {x.shape[1:]}, which are no images (C, H, W)")
        return {**arrays, "x": resized(x, x.shape[1], self.side)}
