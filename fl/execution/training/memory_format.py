"""How images are stored in memory while a module runs in the loop. It changes only the speed and the last bits.

    contiguous       channel by channel, as they come
    channels_last    pixel by pixel
    compiled         pixel by pixel, in machine code: convolutions, ReLUs and max-pools in a row in an nn.Sequential are
                     one function, which keeps the images between them in the near caches (convolutions.py)

torch's convolutions compute in a format of oneDNN's own on a CPU, whatever format they are given. `python -m
experiments.benchmarks.memory_formats` measures the formats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fl.execution.training.convolutions import compute, convolutions, takes
from fl.execution.training.device import Kind, Precision

MemoryFormat = Literal["contiguous", "channels_last", "compiled"]
FASTEST: tuple[MemoryFormat, ...] = ("compiled", "channels_last")  # formats that are faster, in their order
Run = list[nn.Module]  # layers that follow one another


@contextlib.contextmanager
def use_memory_format(module: nn.Module, memory_format: MemoryFormat) -> Iterator[None]:
    """Within the context, `module` stores images in this format. Its outputs are stored as before."""
    hooks, containers = [], []
    if memory_format == "channels_last":
        hooks = [child.register_forward_pre_hook(_channels_last) for child in _convolutions(module)]
    elif memory_format == "compiled":
        containers = [child for child in module.modules() if compiled_runs(child)]
    for container in containers:
        container.forward = _Forward(container)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for container in containers:
            vars(container).pop("forward", None)


def fastest_format(module: nn.Module, device: Kind, precision: Precision) -> MemoryFormat:
    """The format that is usually the fastest."""
    possible = [fmt for fmt in FASTEST if _convolutions(module) and not format_obstacle(fmt, module, device, precision)]
    return possible[0] if possible else "contiguous"


def format_obstacle(memory_format: MemoryFormat, module: nn.Module, device: Kind, precision: Precision) -> str | None:
    """Why images cannot be stored in this format, or `None`."""
    if memory_format == "channels_last" and device == "cpu" and any(map(_corrupts, _convolutions(module))):
        return "oneDNN's gradients of strided 1 x 1 convolutions with few channels would overwrite other memory"
    if memory_format != "compiled":
        return None
    if device != "cpu":
        return "machine code runs on CPUs only"
    if precision == "bf16":
        return "bf16 needs autocast, which does not apply to machine code"
    if not any(map(compiled_runs, module.modules())):
        return "no convolution is followed by a ReLU, a 2 x 2 max-pool or another convolution in an nn.Sequential"
    return None


def compiled_runs(container: nn.Module) -> list[Run]:
    """Runs of at least two layers of an nn.Sequential that are one function, starting with a convolution."""
    return [part for part in _parts(container) if len(part) > 1]


def _parts(container: nn.Module) -> list[Run]:
    """The layers of an nn.Sequential in their order: its compiled runs, and each other layer alone. Of others: none."""
    if not isinstance(container, nn.Sequential) or type(container).forward is not nn.Sequential.forward:
        return []
    if "forward" in vars(container):  # replaced for this object
        return []
    return _divided(container)


def _divided(container: nn.Module) -> list[Run]:
    """The layers in their order: compiled runs, and each other layer alone."""
    parts: list[Run] = []
    open_to: tuple[type[nn.Module], ...] = ()  # layers that continue the last part
    for layer in container._modules.values():  # children() skips second uses
        if layer is None:
            continue
        known = takes(layer)
        if known and isinstance(layer, open_to):
            parts[-1].append(layer)
        else:
            parts.append([layer])
        if known and isinstance(layer, nn.Conv2d):
            open_to = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)
        elif known and isinstance(layer, open_to):
            open_to = open_to if isinstance(layer, nn.ReLU) else (nn.Conv2d, nn.ReLU)  # one pool for each convolution
        else:
            open_to = ()
    return parts


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]


def _corrupts(convolution: nn.Conv2d) -> bool:
    """Whether oneDNN's backward pass corrupts memory with channels last: a strided 1 x 1 convolution of few channels.

    Issue 6035 of uxlfoundation/oneDNN, seen with torch 2.13 on a CPU.
    """
    return convolution.kernel_size == (1, 1) and max(convolution.stride) > 1 and convolution.in_channels < 16


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


class _Forward:
    """The forward method of an nn.Sequential in the context. A copy of the container computes as torch does."""

    def __init__(self, container: nn.Module):
        self.container = container

    def __call__(self, input: Tensor) -> Tensor:  # torch's name
        """What the container computes with its present layers."""
        x = input
        for part in _divided(self.container):
            x = part[0](x) if len(part) == 1 else _compiled(part, x)
        return x

    def __reduce__(self) -> Any:
        return partial, (nn.Sequential.forward, self.container)


def _compiled(run: Run, x: Tensor) -> Tensor:
    """The outputs of a run, from machine code if it can compute them and no hook looks at the layers."""
    if not any(map(_hooked, run)):
        layers = [layer for layer in run if isinstance(layer, nn.Conv2d)]
        out = compute(convolutions(run), x, [each for layer in layers for each in (layer.weight, layer.bias)])
        if out is not None:
            return out
    for layer in run:
        x = layer(x)
    return x


def _hooked(layer: nn.Module) -> bool:
    """Whether a hook sees what the layer takes or returns."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
