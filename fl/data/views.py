"""Views: some rows of a data set, such as one client's training rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fl.data.redrawn import RedrawnArrays

Batch = Mapping[str, Tensor]  # "x", "y" where labelled, and other arrays of the data set; first axis the sample


@dataclass(frozen=True)
class View:
    """Some rows of a data set.

    Attributes:
        arrays: data by name, (N, ...) each, first axis the sample.
        rows: int64 indices into them, (n,).
    """

    arrays: Mapping[str, Tensor]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray | slice = slice(None)) -> Batch:
        """Return the samples at `positions` of this view, by name."""
        return gathered(self.arrays, torch.as_tensor(np.ascontiguousarray(self.rows[positions])))

    @property
    def is_redrawn(self) -> bool:
        """Whether training draws the rows again at each access, because the user's data set is random."""
        return isinstance(self.arrays, RedrawnArrays)

    def take_for_training(self, positions: np.ndarray, *address: int | str) -> dict[str, Tensor]:
        """Return the samples at `positions` for a training step; random rows are drawn for this `address`."""
        if not isinstance(self.arrays, RedrawnArrays):
            return dict(self.take(positions))
        return drawn(self.arrays, self.rows[positions], *address)

    def without(self, *names: str) -> View:
        """Return the view without some arrays: `without("y")` is unlabelled."""
        return View(placed({n: a for n, a in self.arrays.items() if n not in names}, self.arrays), self.rows)


NO_ROWS = View({}, np.empty(0, np.int64))  # a view of nothing


@dataclass(frozen=True, eq=False)
class Chosen(Mapping[str, Tensor]):
    """Rows of arrays, which are gathered when they are asked for, and further arrays beside them.

    Attributes:
        arrays: data by name, (N, ...) each.
        rows: int64 indices into them, (n,).
        beside: further arrays by name, (n, ...) each.
    """

    arrays: Mapping[str, Tensor]
    rows: Tensor
    beside: Mapping[str, Tensor]
    _found: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.beside:
            return self.beside[name]
        if name not in self._found:
            self._found.update(gathered({name: self.arrays[name]}, self.rows))
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.arrays
        yield from self.beside

    def __len__(self) -> int:
        return len(self.arrays) + len(self.beside)


def gathered(arrays: Mapping[str, Tensor], rows: Tensor) -> Mapping[str, Tensor]:
    """Return the samples at `rows`, (n,), on the device of `rows`, wherever the arrays are."""
    if isinstance(arrays, Chosen):
        return Chosen(arrays.arrays, arrays.rows[rows], gathered(arrays.beside, rows))
    return {name: array.index_select(0, rows.to(array.device)).to(rows.device) for name, array in arrays.items()}


def drawn(arrays: RedrawnArrays, rows: np.ndarray, *address: int | str | np.ndarray) -> dict[str, Tensor]:
    """Return the samples at `rows`, (n,), drawn for this address, on the default device."""
    device = torch.empty(0).device
    return {name: array.to(device) for name, array in arrays.source.draw(arrays, rows, *address).items()}


def placed(arrays: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return `arrays`, a copy of `original` on a device, with the source of random rows that `original` has."""
    return RedrawnArrays(arrays, original.source) if isinstance(original, RedrawnArrays) else arrays
