"""Layers with a role, found by structure: the head and the normalisation layers.

The head and the last layer are those of the model itself, whatever a method has added to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from torch import nn

from fl.models.hooks import Recorded, layer_inputs, layer_outputs


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers with their names, without those that a method has added (fl/models/extension.py)."""
    added = vars(module).get("extension")
    return [(n, layer) for n, layer in module.named_modules() if not added or n.partition(".")[0] != added]


def head_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """The names that belong to the head: the last linear layer with any of `names`.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> head_names(net, ["0.weight", "0.bias", "2.weight", "2.bias"])
    ['2.weight', '2.bias']
    """
    known = set(names)
    for layer, child in reversed(_layers(module)):
        found = [
            n for n in (f"{layer}.{own}".lstrip(".") for own, _ in child.named_parameters(recurse=False)) if n in known
        ]
        if isinstance(child, nn.Linear) and found:
            return found
    raise ValueError("model: it has no linear layer that is trained; name the tensors by patterns")


def head_layer(module: nn.Module, names: Iterable[str]) -> str:
    """Name of the head's layer, see `head_names`; "" if the module itself is that layer.

    >>> head_layer(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["0.weight", "2.weight"])
    '2'
    """
    return head_names(module, names)[0].rpartition(".")[0]


def classifier(module: nn.Module, outputs: int) -> tuple[str, nn.Linear]:
    """Return the name of the head's layer, see `head_names`, and the layer, whose outputs are the model's scores.

    >>> classifier(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 2)
    ('2', Linear(in_features=3, out_features=2, bias=True))

    Args:
        module: the model.
        outputs: number of scores for a sample.

    Raises:
        ValueError: the last linear layer is the whole module, or has another number of outputs.
    """
    if not any(isinstance(layer, nn.Linear) for _, layer in _layers(module)):
        raise ValueError("model: it has no linear layer; use a model whose last linear layer returns its outputs")
    name = head_layer(module, [name for name, _ in module.named_parameters()])
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    if not name:
        raise ValueError("model: it is a single linear layer; use model: softmax, or put the layer in an nn.Sequential")
    _check_outputs(name, layer, outputs)
    return name, layer


def _check_outputs(name: str, layer: nn.Linear, outputs: int) -> None:
    if layer.out_features != outputs:
        raise ValueError(
            f"model: its last linear layer {name} has {layer.out_features} outputs, and the task has {outputs}; use a "
            "model whose last linear layer returns the outputs of the model"
        )


def last_layer(module: nn.Module) -> str:
    """Name of the last layer with parameters of its own; its inputs are the model's features.

    >>> last_layer(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    '2'
    """
    return [name for name, child in _layers(module) if next(child.parameters(recurse=False), None) is not None][-1]


def features_of(module: nn.Module, layer: str | None) -> AbstractContextManager[Recorded]:
    """Record the features of each forward pass within the context, as (name of the layer, features).

    They are the outputs of `layer`; without a name, the inputs of the last layer that has parameters.

    Raises:
        ValueError: `layer` is not a layer of the module.
    """
    if layer is None:
        return layer_inputs(module, last_layer(module))
    known = dict(module.named_modules())
    if layer not in known:
        raise ValueError(f"features: {layer!r} is not a layer of the model; it has {[n for n in known if n]}")
    return layer_outputs(module, layer)


def last_linear(module: nn.Module, outputs: int | None = None) -> tuple[str, nn.Linear]:
    """Name and layer of `last_layer`, which has to be a linear layer below the module.

    >>> last_linear(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    ('2', Linear(in_features=3, out_features=2, bias=True))

    Args:
        module: the model.
        outputs: number of outputs for a sample; None: it is not compared with the layer's.

    Raises:
        ValueError: it is another layer, or the module itself, or has another number of outputs.
    """
    name = last_layer(module)
    layer = module.get_submodule(name)
    if not name or not isinstance(layer, nn.Linear):
        raise ValueError(
            f"model: its last layer has to be a linear one, it is {_described(name, layer)}; choose another model"
        )
    if outputs is not None:
        _check_outputs(name, layer, outputs)
    return name, layer


def _described(name: str, layer: nn.Module) -> str:
    return f"{name} ({type(layer).__name__})" if name else "the only layer"


def norm_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """The names that belong to normalisation layers.

    >>> norm_names(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), ["0.weight", "1.weight", "1.bias"])
    ['1.weight', '1.bias']
    """
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    layers = {layer for layer, child in module.named_modules() if isinstance(child, kinds)}
    return [name for name in names if name.rpartition(".")[0] in layers]
