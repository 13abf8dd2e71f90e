"""Whether the work on clients may draw from global random generators, which are then seeded for each client.

Code of this project draws by address (fl/tensors/random.py). Seeding three generators takes 10 microseconds, and a
client of a small model trains in 800.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from fl import registry
from fl.models.probe import ModuleFacts

_PACKAGES = ("torch", "fl")  # whose layers draw in the first look if they ever draw


def may_draw(parts: Iterable[Any], module: nn.Module, facts: ModuleFacts) -> bool:
    """Whether users' code runs among `parts` or in the module, or the module drew random numbers in its first look."""
    if facts.draws or facts.draws_in_evaluation:
        return True
    return any(map(has_users_code, parts)) or not all(map(_is_known, module.modules()))


def has_users_code(part: Any) -> bool:
    """Whether a part, or something that it is made of, is a user's."""
    if isinstance(part, (list, tuple)):
        return any(map(has_users_code, part))
    if isinstance(part, Mapping):
        return any(map(has_users_code, part.values()))
    if isinstance(part, (types.FunctionType, type)):
        return not registry.is_ours(part.__module__)
    if is_dataclass(part):
        return registry.is_users(type(part)) or any(has_users_code(getattr(part, f.name, None)) for f in fields(part))
    return hasattr(part, "__dict__") and registry.is_users(type(part))


def _is_known(layer: nn.Module) -> bool:
    """Whether a layer computes what its class says, and the class is torch's or ours."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    kinds = type(layer), vars(layer).get("original_class", nn.Module)  # of a module that a method has extended
    known = all(kind.__module__.partition(".")[0] in _PACKAGES for kind in kinds)
    return known and "forward" not in vars(layer) and not any(hooks)
