"""What code that depends on values has to know about torch.func."""

from __future__ import annotations

import torch
from torch import Tensor


def under_vmap(tensor: Tensor) -> bool:
    """Return whether a tensor is seen inside of `torch.func.vmap`, where its values are not known.

    >>> torch.func.vmap(lambda x: x + under_vmap(x))(torch.zeros(2)).tolist(), under_vmap(torch.zeros(2))
    ([1.0, 1.0], False)
    """
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
