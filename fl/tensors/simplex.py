"""Simplex equiangular tight frames: C unit vectors in R^k, as far apart from each other as C vectors can be.

    E = sqrt(C / (C - 1)) Q (I - 1 1^T / C),    Q: C orthonormal columns of length k

Papyan, Han, Donoho 2020, arXiv:2008.08186.  E^T E = C / (C - 1) (I - 1 1^T / C): the columns have norm 1, each pair has
the cosine -1 / (C - 1), the sum of all columns is 0 and the rank is C - 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fl.checks import at_least


def simplex(dimensions: int, classes: int, generator: torch.Generator | None = None) -> Tensor:
    """Return a simplex equiangular tight frame, float32 (k, C): one column per class.

    Q comes from the QR decomposition of a Gaussian matrix; the diagonal of R is made positive, so that Q is uniformly
    distributed and the same for every implementation of QR.

    >>> frame = simplex(5, 3, torch.Generator().manual_seed(0))
    >>> (frame.T @ frame).round(decimals=4)
    tensor([[ 1.0000, -0.5000, -0.5000],
            [-0.5000,  1.0000, -0.5000],
            [-0.5000, -0.5000,  1.0000]])

    Args:
        dimensions: length k of the vectors, at least C.
        classes: number C of vectors, at least 2.
        generator: source of the Gaussian matrix. Default: torch's global generator.

    Raises:
        ValueError: C is below 2, or k is below C.
    """
    at_least(2, classes=classes, hint="a frame needs two classes to tell apart")
    at_least(classes, dimensions=dimensions, hint="a frame needs at least one dimension for each class")
    gaussian = torch.randn(dimensions, classes, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    q = q * r.diagonal().sign()
    return (math.sqrt(classes / (classes - 1)) * (q - q.mean(1, keepdim=True))).float()
