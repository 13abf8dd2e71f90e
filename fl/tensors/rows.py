"""Rows of a matrix with chosen norms."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def with_norms(rows: Tensor, norms: float | Tensor | Literal["mean"]) -> Tensor:
    """Return rows (C, h) with the same directions and other Euclidean norms. A row of zeros stays.

    >>> import torch
    >>> rows = torch.tensor([[3.0, 4.0], [0.0, 7.0]])
    >>> with_norms(rows, 1.0)
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])
    >>> with_norms(rows, "mean")
    tensor([[3.6000, 4.8000],
            [0.0000, 6.0000]])

    Args:
        rows: the rows.
        norms: the norm of all rows, or of each row (C,); "mean" is the mean of their present norms.
    """
    present = rows.norm(dim=1)
    if isinstance(norms, str):
        norms = present.mean()
    return rows * (norms / present.clamp(min=1e-12)).unsqueeze(1)
