"""Measured cost of training, for `compute: flops` and `executor: auto`.

`torch.utils.flop_counter` counts matrix products, convolutions and attention; a multiplication and an addition are two
FLOPs. Other operations are not counted.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def flops_per_sample(module: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """Return the FLOPs of a forward and backward pass per sample, measured on a batch. Gradients are restored.

    Args:
        module: The model.
        x: Inputs (B, ...).
        loss: Function from outputs to a scalar.
    """
    before = [parameter.grad for parameter in module.parameters()]
    with FlopCounterMode(display=False) as counter:
        loss(module(x)).backward()
    for parameter, gradient in zip(module.parameters(), before):
        parameter.grad = gradient
    return counter.get_total_flops() / len(x)


def forward_flops_per_sample(module: nn.Module, x: Tensor) -> float:
    """Return the FLOPs of a forward pass per sample, measured on a batch.

    Args:
        module: The model.
        x: Inputs (B, ...).
    """
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() / len(x)
