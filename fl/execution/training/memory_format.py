"""How images are stored in memory while a module runs in the loop. It changes only the speed and the last bits.

    contiguous       channel by channel, as they come
    channels_last    pixel by pixel
    blocked          oneDNN's own format: eight or sixteen channels of a pixel together. Convolutions, ReLUs and
                     max-pools in a row in an nn.Sequential pass blocked images on, without reordering between them

On a CPU, convolutions compute in blocked images, whatever format they are given. `python -m
experiments.benchmarks.memory_formats` measures the formats.

Between blocked layers, a ReLU is computed in place after a convolution, and after a max-pool that follows it: a
maximum over four pixels leaves a quarter of the numbers, and max relu(z) = relu(max z), with the same gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
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
Run = list[nn.Module]  # layers that follow one another
Call = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def use_memory_format(module: nn.Module, memory_format: MemoryFormat) -> Iterator[None]:
    """Within the context, `module` stores images in this format. Its outputs are stored as before."""
    hooks, containers = [], []
    if memory_format == "channels_last":
        hooks = [child.register_forward_pre_hook(_channels_last) for child in _convolutions(module)]
    elif memory_format == "blocked":
        containers = [child for child in module.modules() if blocked_runs(child)]
    for container in containers:
        container.forward = partial(_forward, container)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for container in containers:
            vars(container).pop("forward", None)


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
    if not any(map(blocked_runs, module.modules())):
        return "no convolution is followed by a ReLU, a max-pool or another convolution in an nn.Sequential"
    return None


def blocked_runs(container: nn.Module) -> list[Run]:
    """Runs of at least two layers of an nn.Sequential that take blocked images, starting with a convolution."""
    return [part for part in _parts(container) if len(part) > 1]


def _parts(container: nn.Module) -> list[Run]:
    """The layers of an nn.Sequential in their order: its blocked runs, and each other layer alone. Of others: none."""
    if not isinstance(container, nn.Sequential) or type(container).forward is not nn.Sequential.forward:
        return []
    if "forward" in vars(container):  # replaced for this object
        return []
    return _divided(container)


def _divided(container: nn.Module) -> list[Run]:
    """The layers in their order: blocked runs, and each other layer alone."""
    parts: list[Run] = []
    layers = [layer for layer in container._modules.values() if layer is not None]  # children() skips second uses
    for blockable, group in groupby(layers, _blockable):
        run = list(group)
        begin = next((i for i, layer in enumerate(run) if isinstance(layer, nn.Conv2d)), len(run))
        if not blockable or begin > len(run) - 2:
            begin = len(run)
        parts += [[layer] for layer in run[:begin]]
        if run[begin:]:
            parts.append(run[begin:])
    return parts


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


def _forward(container: nn.Module, input: Tensor) -> Tensor:  # torch's name
    """What the container computes with its present layers."""
    return _in_order(map(_call, _divided(container)), input)


def _in_order(calls: Iterable[Call], x: Tensor) -> Tensor:
    for call in calls:
        x = call(x)
    return x


def _call(part: Run) -> Call:
    """What computes a part of a container."""
    return part[0] if len(part) == 1 else partial(_blocked, part, _blocked_calls(part))


def _blocked_calls(run: Run) -> list[Call]:
    """What computes a run of layers without hooks on blocked images."""
    layers = [*run]
    for k in range(len(layers) - 1):
        if isinstance(layers[k], nn.ReLU) and isinstance(layers[k + 1], nn.MaxPool2d):
            layers[k : k + 2] = layers[k + 1], layers[k]
    calls: list[Call] = []
    for before, layer in zip([None, *layers], layers):
        relu = torch.relu_ if isinstance(before, nn.Conv2d) else torch.relu
        calls.append(relu if isinstance(layer, nn.ReLU) else layer)
    return calls


def _blocked(run: Run, calls: list[Call], x: Tensor) -> Tensor:
    """The outputs of a run, stored as before."""
    if x.dim() != 4 or x.dtype != torch.float32 or x.is_mkldnn:
        return _in_order(run, x)
    if torch._C._functorch.maybe_current_level() is not None:  # torch.func cannot transform blocked images
        return _in_order(run, x)
    return _in_order(run if any(map(_hooked, run)) else calls, x.to_mkldnn()).to_dense()


def _hooked(layer: nn.Module) -> bool:
    """Whether a hook sees what the layer takes or returns."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
