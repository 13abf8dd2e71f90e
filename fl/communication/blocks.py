"""Blocks: cut long vectors into pieces that fit a processor cache, so that codecs need little extra memory.

    rows (C, n)   -- pieces -->   [c0:c1, a:b] of at most BLOCK numbers

Each row is processed by itself, so its bits do not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

BLOCK = 5 << 14  # a multiple of 8 (whole bytes), of 5 (trits per byte) and of every bucket size up to 2^14


def as_rows(tensor: Tensor) -> np.ndarray:
    """View a tensor (*batch, m) as an array (C, m)."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1]).numpy()


def float_rows(values: Tensor, codec: object) -> np.ndarray:
    """Convert values (*batch, n) to float32 (C, n). A ValueError refuses dtypes that are not floating."""
    if not values.is_floating_point():
        raise ValueError(
            f"{codec} takes floating numbers, got {values.dtype}; put it in front of the codec that made those"
        )
    return values.detach().reshape(values.shape[:-1].numel(), values.shape[-1]).to(torch.float32).contiguous().numpy()


def as_tensor(array: np.ndarray, like: Tensor) -> Tensor:
    """Convert an array (C, m) to a tensor (*batch, m) with the batch axes of `like`."""
    return torch.from_numpy(array.reshape(-1)).reshape(*like.shape[:-1], array.shape[-1])


def pieces(rows: int, n: int, block: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Cut (rows, n) into pieces: several whole rows, or a part of one row that starts at a multiple of `block`.

    >>> list(pieces(3, 10, block=20))
    [(slice(0, 2, None), slice(0, 10, None)), (slice(2, 3, None), slice(0, 10, None))]
    """
    if n <= block:
        step = max(1, block // max(n, 1))
        yield from ((slice(c, min(c + step, rows)), slice(0, n)) for c in range(0, rows, step))
    else:
        yield from ((slice(c, c + 1), slice(a, min(a + block, n))) for c in range(rows) for a in range(0, n, block))


# -- numbers per row --------------------------------------------------------------------------------------------------
def not_finite_error(codec: object) -> ValueError:
    """Return the error for values with a NaN or an infinity."""
    return ValueError(
        f"{codec} cannot encode numbers that are not finite, and there are some: "
        "use a smaller learning rate or clip, or drop such clients (on_client_error: drop)"
    )


def check_finite(x: np.ndarray, codec: object) -> None:
    """Raise a ValueError if x (C, n) holds a NaN or an infinity."""
    for at in pieces(*x.shape):
        piece = x[at]
        if piece.size and not (np.isfinite(piece.max()) and np.isfinite(piece.min())):
            raise not_finite_error(codec)


def largest_magnitude(x: np.ndarray, codec: object) -> np.ndarray:
    """Return the largest magnitude in each row of x (C, n), float32 (C,)."""
    out = np.maximum(x.max(-1, initial=0), -x.min(-1, initial=0))
    if not np.isfinite(out).all():
        raise not_finite_error(codec)
    return out


def row_sums(x: np.ndarray, function: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """Return the sums of function(x) over each row of x (C, n), float64 (C,); block by block."""
    total = np.zeros(len(x))
    for rows, columns in pieces(*x.shape):
        piece = x[rows, columns] if function is None else function(x[rows, columns])
        total[rows] += np.ascontiguousarray(piece).sum(-1)
    return total
