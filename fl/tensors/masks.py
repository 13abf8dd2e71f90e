"""Masks of vectors as bits, for states and messages: one bit an element, lowest bit first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask, bool (d,), to bytes uint8 (ceil(d / 8),).

    >>> pack_mask(torch.tensor([True, False, True])).tolist()
    [5]
    """
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), bitorder="little")).to(mask.device)


def unpack_mask(packed: Tensor, d: int) -> Tensor:
    """Undo `pack_mask`: bool (d,).

    >>> unpack_mask(torch.tensor([5], dtype=torch.uint8), 3).tolist()
    [True, False, True]
    """
    flags = np.unpackbits(packed.cpu().numpy(), count=d, bitorder="little")
    return torch.from_numpy(flags.view(bool)).to(packed.device)
