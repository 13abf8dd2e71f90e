"""How images are stored in memory while a module runs in the loop. It changes only the speed and the last bits.

    contiguous       channel by channel, as they come
    channels_last    pixel by pixel
    blocked          oneDNN's own format: eight or sixteen channels of a pixel together. Convolutions, ReLUs and
                     max-pools in a row in an nn.Sequential pass blocked images on, without reordering between them

On a CPU, convolutions compute in blocked images, whatever format they are given. `python -m
experiments.benchmarks.memory_formats` measures the formats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from fl.execution.training.customised import custom_training
from fl.execution.training.device import Kind
from fl.method.client import ClientAlgorithm

# Weights of convolutions from which blocking pays: cnn_tiny has 4,752 and loses 15 %, cnn_pfl has 19,296 and gains 14 %
BLOCKED_ELEMENTS = 1 << 13

MemoryFormat = Literal["contiguous", "channels_last", "blocked"]
Run = tuple[nn.Module, nn.Module]  # the first and the last of layers that follow one another


@contextlib.contextmanager
def use_memory_format(module: nn.Module, memory_format: MemoryFormat) -> Iterator[None]:
    """Within the context, `module` stores images in this format. Its outputs are stored as before."""
    hooks = []
    if memory_format == "channels_last":
        hooks = [child.register_forward_pre_hook(_channels_last) for child in _convolutions(module)]
    elif memory_format == "blocked":
        for first, last in blocked_runs(module):
            hooks += [first.register_forward_pre_hook(_to_blocked), last.register_forward_hook(_from_blocked)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fastest_format(module: nn.Module, algorithm: ClientAlgorithm, device: Kind) -> MemoryFormat:
    """The format that is usually the fastest."""
    convolutions = _convolutions(module)
    if not convolutions or any(map(_corrupts, convolutions)):
        return "contiguous"
    if blocked_obstacle(module, algorithm, device):
        return "channels_last"
    return "blocked" if sum(child.weight.numel() for child in convolutions) >= BLOCKED_ELEMENTS else "contiguous"


def blocked_obstacle(module: nn.Module, algorithm: ClientAlgorithm, device: Kind) -> str | None:
    """Why images cannot be blocked, or `None`.

    Blocked images have no second derivatives, and only methods of plain gradient steps are sure not to need them.
    """
    if device != "cpu":
        return "it is oneDNN's format, for CPUs only"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if reason := custom_training(algorithm):
        return reason
    if not blocked_runs(module):
        return "no convolution is followed by a ReLU, a max-pool or another convolution in an nn.Sequential"
    return None


def blocked_runs(module: nn.Module) -> list[Run]:
    """Runs of at least two layers that take blocked images, starting with a convolution."""
    found = []
    for container in module.modules():
        if isinstance(container, nn.Sequential):
            layers = list(container._modules.values())  # named_children() skips a module's second use
            for blockable, group in groupby(layers, _blockable):
                run = [layer for layer in group if layer is not None]
                while blockable and run and not isinstance(run[0], nn.Conv2d):
                    del run[0]
                if blockable and len(run) > 1:
                    found.append((run[0], run[-1]))
    return found


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]


def _blockable(layer: nn.Module | None) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if type(layer) is nn.MaxPool2d:
        return layer.dilation == 1 and not layer.return_indices
    return type(layer) is nn.ReLU


def _corrupts(convolution: nn.Conv2d) -> bool:
    """Whether oneDNN's backward pass corrupts memory with channels last: a strided 1 x 1 convolution of few channels.

    Issue 6035 of uxlfoundation/oneDNN, seen with torch 2.13 on a CPU.
    """
    return convolution.kernel_size == (1, 1) and max(convolution.stride) > 1 and convolution.in_channels < 16


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


def _to_blocked(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    x = inputs[0]
    if x.dim() != 4 or x.dtype != torch.float32 or x.is_mkldnn:
        return None
    if torch._C._functorch.maybe_current_level() is not None:  # torch.func cannot transform blocked images
        return None
    return (x.to_mkldnn(), *inputs[1:])


def _from_blocked(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to_dense() if output.is_mkldnn else output
