"""Parts that the Python API was given as objects: arrays, functions, modules, classes and instances.

config.yaml names what can be imported again (`module:Name`, `path.py:Name`). Anything else is written `object:Name`,
and a resumed run says that it cannot know it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fl import registry
from fl.config.part_checks import DERIVED
from fl.config.references import holds_data
from fl.data.dataset import Dataset
from fl.data.forms import GivenData, is_data_set
from fl.kinds import KINDS, Kind
from fl.models.section import Factory, model_part

OBJECT = "object:"


@dataclass(frozen=True)
class GivenModule:
    """A model part for a module that was given as an object.

    Args:
        module: the module; each run starts from a copy, with the weights that it has.
    """

    module: nn.Module

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return a copy of the module."""
        return copy.deepcopy(self.module)


def from_object(kind: Kind, value: Any) -> Any:
    """The part for an object, such as `data=(x, y)`, `model=Net` or `strategy=MyRule`. ValueError if it cannot be."""
    if kind.name == "model":
        if isinstance(value, nn.Module):
            return GivenModule(value)
        return value if hasattr(value, "build") and not isinstance(value, type) else model_part(value, {})
    if kind.name == "data":
        return _data_part(value)
    return value() if isinstance(value, type) else value


def is_given(value: Any) -> bool:
    """Whether a value of `data` is arrays or data sets, given in Python, and not the name of a part."""
    if isinstance(value, Mapping):
        return holds_data(value)
    several = isinstance(value, list) and bool(value) and all(map(is_data_set, value))
    return several or isinstance(value, tuple) or is_data_set(value)


def _data_part(value: Any) -> Any:
    """The data part for arrays, a data set, a function or class that returns them, or a part that loads them."""
    made_by = None
    if callable(value) and not is_data_set(value) and (isinstance(value, type) or not hasattr(value, "load")):
        value, made_by = value(), value
    loads = isinstance(value, Dataset) or (hasattr(value, "load") and not is_data_set(value))
    return value if loads else GivenData(value, made_by)


def reference_to(part: Any) -> str | None:
    """How config.yaml names a part that was given as an object; None for registered parts and for plain sections."""
    if isinstance(part, GivenModule):
        return OBJECT + type(part.module).__name__
    if isinstance(part, GivenData) and part.made_by is not None:
        return _importable(part.made_by)
    if isinstance(part, (Dataset, GivenData)):
        given = getattr(part, "value", None)
        return OBJECT + (type(given).__name__ if is_data_set(given) else "Dataset")
    if isinstance(part, Factory):
        return _importable(part.make)
    if not hasattr(type(part), "registered_as") and any(isinstance(part, KINDS[k].base_class) for k in DERIVED):
        return _importable(type(part))
    return None


def _importable(made: Any) -> str:
    """`path.py:Name` or `module:Name` of a class or a function that can be imported by it, else `object:Name`."""
    module, name = getattr(made, "__module__", ""), getattr(made, "__qualname__", type(made).__name__)
    found = getattr(sys.modules.get(module), name, None)
    if found is not made or module == "__main__":
        return OBJECT + name
    file = registry.sources().get(module)
    return f"{file[0] if file else module}:{name}"
