"""Round noisy values, so that their last bits tell nothing about the values without noise.

Not every number can be a sum of a given number and floating-point noise, and the last bits tell which number it was
(Mironov 2012, "On significance of the least significant bits for differential privacy").
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fl.tensors.trees import Tree, leaves

BITS = 10  # the step is between 2^-10 and 2^-11 of the noise's standard deviation


def step_of(std: float) -> float:
    """Return the distance of rounded values: a power of 2, about a thousandth of the standard deviation.

    >>> step_of(1.5)
    0.0009765625
    """
    return float(2.0 ** (math.floor(math.log2(std)) - BITS))


def rounded(noisy: Mapping[str, Tree], std: float) -> dict[str, Tree]:
    """Round noisy values in place to multiples of `step_of(std)`; return them.

    Args:
        noisy: group -> Params or tensor.
        std: standard deviation of the noise, positive.
    """
    step = step_of(std)
    for tensor in leaves(dict(noisy)):
        tensor.div_(step).round_().mul_(step)
    return dict(noisy)
