"""A module that runs on the samples of many clients at once: the layers with own tensors are stacked layers.

    (A B, ...) -> stacked module -> (A B, K)

A parameter of a container (a table of positions, a class token) is repeated for each sample.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fl.execution.training.stacked_layers import STACKED_LAYERS, StackedLayer


class Unstackable(ValueError):
    """Clients cannot have their own tensors of a layer."""


class StackedModule:
    """A module that runs on the samples of several clients, with each client's own tensors.

    Layers with such tensors are replaced by stacked layers; all others are the module's own.

    Args:
        module: the module.
        own: names of the tensors that differ between clients.
    """

    def __init__(self, module: nn.Module, own: Iterable[str]):
        """Raises `Unstackable`, which names a layer that cannot have these tensors."""
        self.own = set(own)
        self.places: dict[str, tuple[StackedLayer, str]] = {}  # name of a tensor -> its stacked layer, its name there
        self.repeated: dict[str, tuple[nn.Module, str]] = {}  # the same for tensors of containers
        self.copies: list[
            tuple[nn.Module, nn.Module, dict[str, Any]]
        ] = []  # container, its copy, the copy's attributes
        self._made: dict[nn.Module, nn.Module | StackedLayer] = {}
        self.module = self._stacked(module, "")
        self.tensors: Mapping[str, Tensor] = {}
        self.clients = 0

    def _stacked(self, module: nn.Module, prefix: str) -> nn.Module | StackedLayer:
        if module in self._made:
            return self._made[module]
        parts = {name: name.removeprefix(prefix) for name in self.own if name.startswith(prefix)}
        made: nn.Module | StackedLayer = module
        if parts:
            kind = STACKED_LAYERS.get(f"{type(module).__module__}.{type(module).__qualname__}")
            made = self._container(module, prefix, parts) if kind is None else self._layer(kind, module, prefix, parts)
        self._made[module] = made
        return made

    def _layer(
        self, kind: type[StackedLayer], module: nn.Module, prefix: str, parts: Mapping[str, str]
    ) -> StackedLayer:
        if obstacle := kind.obstacle(module, list(parts.values())):
            raise Unstackable(f"{prefix.rstrip('.')} ({type(module).__name__}) {obstacle}")
        layer = kind(module)
        self.places |= {name: (layer, part) for name, part in parts.items()}
        return layer

    def _container(self, module: nn.Module, prefix: str, parts: Mapping[str, str]) -> nn.Module:
        made: Any = copy.copy(module)
        made._parameters, made._modules = dict(module._parameters), {}
        for name, part in parts.items():
            if "." not in part:
                del made._parameters[part]
                self.repeated[name] = (made, part)
        for name, child in module._modules.items():
            made._modules[name] = child and self._stacked(child, f"{prefix}{name}.")
        self.copies.append((module, made, dict(vars(made))))
        return made

    @property
    def takes_positions(self) -> bool:
        """As of the module, see `CausalLM`."""
        return getattr(self.module, "takes_positions", False)

    def set(self, tensors: Mapping[str, Tensor], clients: int) -> None:
        """Use these tensors (A, *shape) of A clients from now on."""
        self.tensors, self.clients = tensors, clients
        for name, (layer, part) in self.places.items():
            layer.clients, layer.own[part] = clients, tensors[name]

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """x (A B, ...): the samples of one client after those of another."""
        for name, (container, part) in self.repeated.items():
            one_of_each = self.tensors[name].repeat_interleave(len(x) // self.clients, 0)
            has_sample_axis = one_of_each.ndim > 1 and one_of_each.shape[1] == 1
            container.__dict__[part] = one_of_each.squeeze(1) if has_sample_axis else one_of_each
        outputs = self.module(x, *args, **kwargs)
        for container, copied, attributes in self.copies:
            if vars(copied) != attributes:
                self._hand_back(container, copied, attributes)
        return outputs

    def _hand_back(self, container: nn.Module, copied: nn.Module, attributes: dict[str, Any]) -> None:
        """Give the module itself the attributes that its copy set in a forward pass; workers compare them."""
        repeated = {part for of, part in self.repeated.values() if of is copied}
        for name, value in vars(copied).items():
            if name not in repeated and value is not attributes.get(name):
                vars(container)[name] = value
