"""A method adds parts to the model: `ClientAlgorithm.extend`.

    built module, warm start -> extend, with random numbers of its own -> checked -> freeze -> adapter

The tensors of the original keep their names, so warm starts, `freeze`, `trains` and the private patterns of strategies
go on to work. The added tensors lie under one prefix, which the module has as its attribute `extension`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fl.models.layers import last_layer
from fl.models.outputs import has_logits
from fl.tensors.generators import seeded_generators

Extend = Callable[[nn.Module, tuple[int, ...], int], nn.Module]
_HELD = ("_parameters", "_buffers", "_modules")


class Extended(nn.Module):
    """A module with an added part. Subclasses override `forward`.

    `forward(x)` returns the outputs that evaluations use; with further arguments it may return a tuple or a dict.

    Args:
        original: the module. Its layers and parameters become those of this module, under the same names.
        prefix: name of the added part.
        added: the added part; `nn.ModuleDict` holds several.
        replaced: name of a layer of the original -> a new layer, whose tensors may have other shapes.

    Attributes:
        extension: the prefix.
        last: name of the original's last layer with parameters; its inputs are the model's features.

    >>> class WithProjection(Extended):
    ...     def forward(self, x, project=False):
    ...         outputs, features = self.with_inputs(self.last, x)
    ...         return (outputs, self.added(features)) if project else outputs
    >>> net = WithProjection(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "projection", nn.Linear(3, 5))
    >>> [name for name, _ in net.named_parameters()][-3:]
    ['2.bias', 'projection.weight', 'projection.bias']
    >>> [tuple(y.shape) for y in net(torch.zeros(7, 4), project=True)]
    [(7, 2), (7, 5)]
    """

    def __init__(
        self, original: nn.Module, prefix: str, added: nn.Module, replaced: Mapping[str, nn.Module] | None = None
    ):
        super().__init__()
        if hasattr(original, prefix) or hasattr(type(self), prefix) or "." in prefix:
            raise ValueError(f"{prefix!r} is a name in the model already, or has a dot; take another prefix")
        self.original_class, self.original_layers = type(original), tuple(original._modules)
        self.original_attributes = {name: value for name, value in vars(original).items() if name not in _HELD}
        self.extension, self.replaced = prefix, tuple(replaced or ())
        self.last = last_layer(original)
        self._parameters, self._buffers = dict(original._parameters), dict(original._buffers)
        self._modules = dict(original._modules)
        for name, layer in (replaced or {}).items():
            self.set_submodule(name, layer)
        self.add_module(prefix, added)

    @property
    def added(self) -> Any:
        """The added part."""
        return self._modules[self.extension]

    def train(self, mode: bool = True) -> Extended:
        """Set the mode of all layers, by the original's own `train` if it has one."""
        if self.original_class.train is nn.Module.train:
            return super().train(mode)
        view = self._view(self._layers())
        view.train(mode)
        _hand_back(view, self.original_attributes)
        self.added.train(mode)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        """Return the original's outputs."""
        return self.original(x)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the original's forward pass returns; of an object with `logits`, these."""
        return self._call((), args, kwargs)

    def with_inputs(self, layer: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return what the original's forward pass returns, and the first input of one of its layers, by name."""
        place = _Place(layer, lambda original, *inputs, **named: original(*inputs, **named))
        outputs = self._call((place,), args, kwargs)
        return outputs, place.inputs[0]

    def with_layer(self, layer: str, instead: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the original's forward pass in which `instead(layer, *inputs)` is called in place of a layer."""
        return self.with_layers({layer: instead}, *args, **kwargs)

    def with_layers(self, instead: Mapping[str, Callable[..., Any]], *args: Any, **kwargs: Any) -> Any:
        """Return the original's forward pass in which each `instead[name](layer, *inputs)` replaces a layer's call.

        No layer contains another one.
        """
        return self._call([_Place(name, call) for name, call in instead.items()], args, kwargs)

    def _call(self, places: Sequence[_Place], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        layers = self._layers()
        copies = [pair for place in places for pair in place.fill(layers)]
        view = self._view(layers)
        outputs = view(*args, **kwargs)
        for place in places:
            if not place.inputs:
                raise ValueError(f"the model's forward pass does not call the layer {place.name!r}")
        _hand_back(view, self.original_attributes)
        for container, copied in reversed(copies):  # a container of two places is copied twice
            _hand_back(copied, vars(container))
        return outputs.logits if has_logits(outputs) else outputs

    def _layers(self) -> dict[str, Any]:
        """The original's layers by name."""
        return {name: self._modules[name] for name in self.original_layers}

    def _view(self, layers: dict[str, Any]) -> nn.Module:
        """Return a module of the original's class with this module's tensors and with `layers`."""
        view: nn.Module = object.__new__(self.original_class)
        held = {"_parameters": self._parameters, "_buffers": self._buffers, "_modules": layers}
        view.__dict__.update(self.original_attributes, **held, training=self.training)
        return view


class _Place:
    """A layer of the original in whose place something else is called.

    Args:
        name: name of the layer.
        instead: called with the layer and its inputs.
    """

    def __init__(self, name: str, instead: Callable[..., Any]):
        self.name, self.instead = name, instead
        self.inputs: tuple[Any, ...] = ()
        self.layer: Any = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        self.inputs = inputs or tuple(named.values())
        return self.instead(self.layer, *inputs, **named)

    def __getattr__(self, name: str) -> Any:  # weights and sizes of the layer
        return getattr(self.__dict__["layer"], name)

    def fill(self, layers: dict[str, Any]) -> list[tuple[nn.Module, nn.Module]]:
        """Take the place of the layer in the tree of `layers`; return the containers on the way, with their copies."""
        *path, last = self.name.split(".")
        copies = []
        for name in path:
            container, copied = layers[name], copy.copy(layers[name])
            copies.append((container, copied))
            layers[name], layers = copied, dict(container._modules)
            copied._modules = layers
        if last not in layers:
            raise ValueError(f"{self.name!r} is not a layer of the model that is extended")
        self.layer, layers[last] = layers[last], self
        return copies


def _hand_back(copied: nn.Module, attributes: dict[str, Any]) -> None:
    """Keep the attributes that a forward pass has set in the copy of a module."""
    for name, value in vars(copied).items():
        if name not in (*_HELD, "training") and (name not in attributes or attributes[name] is not value):
            attributes[name] = value


def extended(
    extend: Extend, module: nn.Module, shape: tuple[int, ...], outputs: int, word: int, method: str
) -> nn.Module:
    """Return the module that a method's `extend` makes, checked.

    Args:
        extend: the hook.
        module: the model.
        shape: shape of a sample.
        outputs: number of outputs.
        word: what global generators are seeded with while `extend` runs; they are restored after it.
        method: name of the method, for messages.

    Raises:
        ValueError: `extend` returns no module, changes tensors of the model without saying so, adds tensors under
            several prefixes, or returns other tensors when it is called again.
    """
    before, twin = {name: t.detach().clone() for name, t in _tensors(module).items()}, copy.deepcopy(module)
    first, second = (_called(extend, each, shape, outputs, word, method) for each in (module, twin))
    now, again = _tensors(first), _tensors(second)
    replaced = tuple(f"{layer}." for layer in getattr(first, "replaced", ()))
    kept = {name: tensor for name, tensor in before.items() if not name.startswith(replaced or ("\0",))}
    changed = [name for name, tensor in kept.items() if name not in now or not _same(tensor, now[name])]
    if changed:
        raise ValueError(
            f"extend of {method} changes {_some(changed)} of the model; it may only add tensors. `fl.Extended` keeps "
            "the names, and takes layers to replace as replaced={name: layer}"
        )
    if list(now) != list(again) or not all(_same(tensor, again[name]) for name, tensor in now.items()):
        raise ValueError(
            f"extend of {method} returns other tensors when it is called again; draw random numbers from torch's, "
            "NumPy's or Python's global generators, which are seeded"
        )
    added = [name for name in now if name not in before and not name.startswith(replaced or ("\0",))]
    prefixes = sorted({name.partition(".")[0] for name in added})
    taken = {name.partition(".")[0] for name in before}
    if len(prefixes) > 1 or not taken.isdisjoint(prefixes) or any("." not in name for name in added):
        raise ValueError(
            f"extend of {method} adds {_some(added)}; all added tensors need names below one prefix that the model "
            "does not have, such as head.weight and head.bias"
        )
    if prefixes:
        first.extension = prefixes[0]  # type: ignore[assignment]  # a plain attribute
    return first


def note(module: nn.Module, method: str) -> list[str]:
    """Return a sentence for the first lines of a run: what the method adds to the model; no sentence if nothing."""
    prefix = vars(module).get("extension")
    if not prefix:
        return []
    numbers = [p.numel() for name, p in module.named_parameters() if name.startswith(f"{prefix}.")]
    return [f"client {method} adds {prefix}.* to the model ({sum(numbers)} parameters)"]


def _called(
    extend: Extend, module: nn.Module, shape: tuple[int, ...], outputs: int, word: int, method: str
) -> nn.Module:
    with seeded_generators(word):
        try:
            made = extend(module, shape, outputs)
        except Exception as error:
            raise ValueError(f"extend of {method} fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"extend of {method} returns a {type(made).__name__}, not an nn.Module")
    return made


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, type and values; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
