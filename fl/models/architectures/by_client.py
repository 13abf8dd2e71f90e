"""An architecture for each client: `model: {by_client: {assign: modulo, models: {small: ..., large: ...}}}`.

    client c has the model  names[c mod K]  of the K models (modulo), or the c-th name of a list

Each client's model is the client's own: it starts from its architecture's first values and is never sent. So the method
exchanges something else: prototypes, outputs, or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from fl.models.architectures.linear import MLP
from fl.models.section import Model
from fl.registry import register


def assigned(names: Sequence[str], models: Sequence[str], clients: int) -> np.ndarray:
    """Return the number of each client's model in `models`, (N,).

    >>> assigned(["large", "small", "large"], ["small", "large"], 3).tolist()
    [1, 0, 1]

    Args:
        names: the name of each client's model.
        models: all names.
        clients: number of clients.

    Raises:
        ValueError: a name is unknown, or there is not one for each client.
    """
    unknown = [name for name in names if name not in models]
    if unknown:
        raise ValueError(f"assign: {unknown[0]!r} is not one of the models {list(models)}")
    if len(names) != clients:
        raise ValueError(f"assign: {len(names)} names for {clients} clients; each client needs one")
    return np.array([list(models).index(name) for name in names], np.int64)


def read_names(path: str) -> list[str]:
    """Return the list of names in a .json file. ValueError if it holds none."""
    if not Path(path).is_file():
        raise ValueError(f"assign: {path!r} is neither 'modulo' nor a list of names nor a .json file here")
    try:
        names = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"assign: {path} is not JSON: {error}") from None
    if not isinstance(names, list):
        raise ValueError(f"assign: {path} holds {type(names).__name__}, not a list of names")
    return names


@register("model", "by_client")
@dataclass(frozen=True, kw_only=True)
class ByClient:
    """A model of its own for each client, of one of several architectures.

    Args:
        models: name -> model, at least one. Each has the options of the section `model`: init, freeze, adapter.
        assign: which client has which: "modulo" (client c has model c mod the number of models, in their order), a
            list with the name of each client's model, or the path of a .json file with such a list.
    """

    models: dict[str, Model]
    assign: str | tuple[str, ...] = "modulo"

    example_config: ClassVar[dict[str, Any]] = {"model.models": {"one": Model(part=MLP(hidden=(16,)))}}

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: there are none; name at least one")
        nested = [name for name, model in self.models.items() if isinstance(model.part, ByClient)]
        if nested:
            raise ValueError(f"models: {nested[0]!r} is by_client itself; list all models in one place")

    @property
    def path(self) -> str | None:
        """The file that assigns models to clients, or None."""
        return self.assign if isinstance(self.assign, str) and self.assign != "modulo" else None

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return a module of the first architecture."""
        return next(iter(self.models.values())).build(shape, outputs)

    def assigned(self, clients: int) -> np.ndarray:
        """Return the number of each client's model, (N,). ValueError if `assign` does not fit the clients."""
        names = list(self.models)
        if self.assign == "modulo":
            return np.arange(clients) % len(names)
        return assigned(self.assign if self.path is None else read_names(self.path), names, clients)
