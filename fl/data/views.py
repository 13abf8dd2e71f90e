"""Views: some rows of a data set, such as one client's training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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

    def without(self, *names: str) -> View:
        """Return the view without some arrays: `without("y")` is unlabelled."""
        return View({n: a for n, a in self.arrays.items() if n not in names}, self.rows)


def gathered(arrays: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return the samples at `rows`, (n,), on the device of `rows`, wherever the arrays are."""
    return {name: array.index_select(0, rows.to(array.device)).to(rows.device) for name, array in arrays.items()}
