"""A module's layers and tensors. They are walked once, and again only when the layers have changed.

structure(module).parameters         [(name, parameter), ...]
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from fl.models.batch_norm import statistics_names
from fl.models.dropout import Dropout
from fl.models.extension import Extended


class Structure:
    """What a walk through the layers of a module finds. It keeps no reference to the module itself.

    Args:
        module: the module.

    Attributes:
        layers: its submodules, each once.
        dropout: the Dropout layers of ours among them.
        averaged: names of the running statistics that are averaged.
    """

    def __init__(self, module: nn.Module):
        every = list(module.modules())
        self.layers = every[1:]
        self.dropout = [layer for layer in self.layers if isinstance(layer, Dropout)]
        self.averaged = statistics_names(module, "averaged")
        self._parameters, self._buffers = _places(module, "_parameters"), _places(module, "_buffers")
        self._children = [(layer._modules, list(layer._modules.values())) for layer in every if layer._modules]
        self._counts = [(held, len(held)) for layer in every for held in (layer._parameters, layer._buffers)]
        self._plain = all(map(_has_plain_train, every))

    def describes(self) -> bool:
        """Whether the module still has these layers, with as many parameters and buffers."""
        for held, layers in self._children:
            if list(held.values()) != layers:
                return False
        for tensors, count in self._counts:
            if len(tensors) != count:
                return False
        return True

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters with their names, as in `module.named_parameters()`."""
        return [(name, held[key]) for name, held, key in self._parameters]

    @property
    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that get gradients, with their names."""
        return [(name, held[key]) for name, held, key in self._parameters if held[key].requires_grad]

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """The parameters and the buffers, with their names."""
        return [(name, held[key]) for name, held, key in (*self._parameters, *self._buffers)]

    def set_training(self, module: nn.Module, training: bool) -> None:
        """Put the module, which this structure was made of, in training mode or in evaluation mode."""
        same = self._plain and module.training is training
        for layer in self.layers:
            same = same and layer.training is training
        if not same:
            module.train(training)


def _has_plain_train(layer: nn.Module) -> bool:
    """Whether a layer's mode is a flag and no more."""
    if type(layer).train is Extended.train:
        return vars(layer)["original_class"].train is nn.Module.train
    return type(layer).train is nn.Module.train


def _places(module: nn.Module, kind: str) -> list[tuple[str, dict[str, Any], str]]:
    """Return (name, the dict that holds it, its key) of the parameters or buffers; a shared tensor has one place."""
    found: list[tuple[str, dict[str, Any], str]] = []
    seen: set[int] = set()
    for prefix, layer in module.named_modules():
        held: dict[str, Any] = getattr(layer, kind)
        for key, tensor in held.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found.append((f"{prefix}.{key}" if prefix else key, held, key))
    return found


_known: weakref.WeakKeyDictionary[nn.Module, Structure] = weakref.WeakKeyDictionary()


def structure(module: nn.Module) -> Structure:
    """Return the structure of a module."""
    found = _known.get(module)
    if found is None or not found.describes():
        found = _known[module] = Structure(module)
    return found
