"""A module's tensors as named `Params`, and a module that runs on them.

initial = Initial.of(module)        its tensors at the start of the run: trained and frozen
bind(module, params, initial)       the module's tensors become views of `params`
require_gradients(module, initial)  its trained tensors require gradients, as at the start of the run
outputs_under(module, ...)          outputs under other tensors; the module keeps its own
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl.models.batch_norm import statistics_names
from fl.models.structure import structure
from fl.tensors.params import NOTHING, Params


def module_params(module: torch.nn.Module) -> Params:
    """The tensors that training may change, packed into a copy: trained parameters and averaged statistics."""
    averaged, buffers = statistics_names(module, "averaged"), dict(module.named_buffers())
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return Params.of(trained | {name: buffers[name] for name in averaged})


@dataclass(frozen=True)
class Initial:
    """All tensors of a module at the start of the run, from the seed or from a file that every worker has.

    trained: the tensors that training may change.
    frozen: the others, with floating-point buffers.
    """

    trained: Params
    frozen: Params

    @staticmethod
    def of(module: torch.nn.Module) -> Initial:
        """Copy the tensors of a module."""
        trained = module_params(module)
        frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
        buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point() and name not in trained}
        return Initial(trained, Params.of({**frozen, **buffers}))

    def hold(self, module: torch.nn.Module) -> None:
        """Make the module's frozen tensors views of `frozen`, so that they are in memory once."""
        for name, tensor in structure(module).tensors:
            if name in self.frozen:
                tensor.data = self.frozen[name]


def bind(
    module: torch.nn.Module, params: Params, initial: Initial, trained: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Make the module's tensors views: of `trained` (with gradients), else of `params`, else of the initial tensors.

    Returns the views by name.
    """
    trained = NOTHING if trained is None else trained
    sources = (trained, params, initial.trained, initial.frozen)
    views: dict[str, Tensor] = {}
    for name, tensor in structure(module).tensors:
        for source in sources:
            if name in source:
                tensor.data = views[name] = source[name]
                if tensor.requires_grad != (source is trained):
                    tensor.requires_grad_(source is trained)
                break
    return views


def require_gradients(module: torch.nn.Module, initial: Initial) -> None:
    """Let the tensors that training may change require gradients, as they did before `bind`."""
    for name, tensor in module.named_parameters():
        tensor.requires_grad_(name in initial.trained)


def outputs_under(
    module: torch.nn.Module,
    params: Mapping[str, Tensor],
    initial: Initial,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Return `module(*args, **kwargs)` under `params`, in evaluation mode and without gradients.

    Unlike `bind`, this leaves the module with the tensors and the mode that it has. Tensors missing from `params` keep
    their initial values. With `params` of C clients, (C, ...), the module is called for each of them with the same
    arguments, and each output has a leading axis C.
    """
    layers, training = structure(module), module.training

    def call(tensors: Mapping[str, Tensor]) -> Any:
        everything = {**initial.frozen, **initial.trained, **tensors}
        return torch.func.functional_call(module, everything, args, dict(kwargs))

    layers.set_training(module, False)
    try:
        with torch.no_grad():
            return torch.func.vmap(call)(dict(params)) if isinstance(params, Params) and params.batch else call(params)
    finally:
        layers.set_training(module, training)
