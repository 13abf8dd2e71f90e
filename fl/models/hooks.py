"""Inputs and outputs of layers inside a module, recorded by hooks while a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Recorded = list[tuple[str, Tensor]]


@contextmanager
def layer_inputs(module: nn.Module, *layers: str) -> Iterator[Recorded]:
    """Within the context, each call of a layer appends (name of the layer, its first input) to the list.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with layer_inputs(net, "2") as recorded:
    ...     _ = net(torch.zeros(5, 4))
    >>> [(name, tuple(x.shape)) for name, x in recorded]
    [('2', (5, 3))]
    """
    recorded: Recorded = []

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, inputs: recorded.append((name, inputs[0]))

    with _removed([module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]):
        yield recorded


@contextmanager
def layer_outputs(module: nn.Module, *layers: str) -> Iterator[Recorded]:
    """Within the context, each call of a layer appends (name of the layer, its output) to the list.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> with layer_outputs(net, "0", "1") as recorded:
    ...     _ = net(torch.zeros(5, 4))
    >>> [(name, tuple(y.shape)) for name, y in recorded]
    [('0', (5, 3)), ('1', (5, 3))]
    """
    recorded: Recorded = []

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: recorded.append((name, output))

    with _removed([module.get_submodule(name).register_forward_hook(hook(name)) for name in layers]):
        yield recorded


@contextmanager
def _removed(handles: list[RemovableHandle]) -> Iterator[Any]:
    """Remove the hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
