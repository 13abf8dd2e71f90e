"""How images lie in memory while a module runs in the loop: it touches speed and last bits, nothing else.

    contiguous       channel by channel, as they come
    channels_last    pixel by pixel
    blocked          oneDNN's own, eight or sixteen channels of a pixel together: convolutions, ReLUs and max-pools that follow one
                     another in an nn.Sequential hand each other blocked images, which saves a reordering before and after each

On CPU convolutions compute in blocked images, whatever they are given; `python -m experiments.benchmarks.layouts` measures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from fl.execution.training.device import Kind
from fl.execution.training.loop import beyond_gradients
from fl.method.client import ClientAlgorithm

# weights of convolutions from which reordering pays: cnn_tiny has 4,752 and loses 15 %, cnn_pfl has 19,296 and wins 14 %
BLOCKED_ELEMENTS = 1 << 13

MemoryFormat = Literal["contiguous", "channels_last", "blocked"]
Run = tuple[nn.Module, nn.Module]  # its first and its last layer


@contextlib.contextmanager
def laid_out(module: nn.Module, layout: MemoryFormat) -> Iterator[None]:
    """Within, `module` lays images out so; what it returns is as ever."""
    hooks = []
    if layout == "channels_last":
        hooks = [child.register_forward_pre_hook(_channels_last) for child in _convolutions(module)]
    elif layout == "blocked":
        for first, last in runs(module):
            hooks += [first.register_forward_pre_hook(_enter), last.register_forward_hook(_leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def default(module: nn.Module, algorithm: ClientAlgorithm, device: Kind) -> MemoryFormat:
    """What is quickest as a rule."""
    convolutions = _convolutions(module)
    if not convolutions or any(map(_corrupts, convolutions)):
        return "contiguous"
    if unblockable(module, algorithm, device):
        return "channels_last"
    return "blocked" if sum(child.weight.numel() for child in convolutions) >= BLOCKED_ELEMENTS else "contiguous"


def unblockable(module: nn.Module, algorithm: ClientAlgorithm, device: Kind) -> str | None:
    """Why images cannot be blocked, or `None`. They carry no second derivatives, and plain gradient steps alone surely ask for none."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return "it is oneDNN's, of CPUs" if device != "cpu" else "this torch was built without oneDNN"
    if more := beyond_gradients(algorithm):
        return more
    return None if runs(module) else "no convolution is followed by a ReLU, a max-pool or another in an nn.Sequential"


def runs(module: nn.Module) -> list[Run]:
    """Where layers that know blocked images follow one another, at least two and a convolution first."""
    found = []
    for container in module.modules():
        if isinstance(container, nn.Sequential):
            layers = list(container._modules.values())  # named_children() skips a module's second use
            for known, group in groupby(layers, _blockable):
                run = list(group)
                while known and run and not isinstance(run[0], nn.Conv2d):
                    del run[0]
                if known and len(run) > 1:
                    found.append((run[0], run[-1]))
    return found


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]


def _blockable(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if type(layer) is nn.MaxPool2d:
        return layer.dilation == 1 and not layer.return_indices
    return type(layer) is nn.ReLU


def _corrupts(convolution: nn.Conv2d) -> bool:
    """Whether oneDNN's backward pass writes beyond its memory with channels last: strided 1 x 1 of few channels (issue 6035 of
    uxlfoundation/oneDNN, seen with torch 2.13 on CPU)."""
    return convolution.kernel_size == (1, 1) and max(convolution.stride) > 1 and convolution.in_channels < 16


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


def _enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    x = inputs[0]
    return (x.to_mkldnn(), *inputs[1:]) if x.dim() == 4 and x.dtype == torch.float32 and not x.is_mkldnn else None


def _leave(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to_dense() if output.is_mkldnn else output
