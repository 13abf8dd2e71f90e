"""What goes down (`Broadcast`) and what comes up (`Update`).

    server  -- Broadcast: shared | rows | select | static, + config -->  client
    server  <-- Update: groups of named tensors, num_examples, metrics --  client

A group is a tree of `Params`, tensors, `Table`s and `Sparse` values. The ledger counts groups by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fl.tensors.params import Params
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Static:
    """A value that clients keep: counted only when a client last saw another `version` (a frozen base, pseudo-data)."""

    version: int
    value: Tree


@dataclass(frozen=True)
class Broadcast:
    """What the server sends in one exchange.

    shared: group -> tree, the same for all; encoded once, counted per receiving client and once for multicast.
    rows:   group -> fn(client, shared) -> tree, evaluated on the worker (generated models, per-client ranks).
    select: group -> (name of a shared array or Params group to take from, fn(client) -> index tensor); the client
            receives the chosen rows (an array) or elements (Params, positions in `compact` order), and only those count.
            Shared groups that are only selected from are named in `hidden`: they are not sent whole.
    static: group -> Static, counted when new to the client.
    config: plain numbers for the client, or fn(client) -> such a dict.
    """

    shared: Mapping[str, Tree] = field(default_factory=dict)
    rows: Mapping[str, Callable[[int, Mapping[str, Tree]], Tree]] = field(default_factory=dict)
    select: Mapping[str, tuple[str, Callable[[int], Tensor]]] = field(default_factory=dict)
    static: Mapping[str, Static] = field(default_factory=dict)
    config: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()

    @staticmethod
    def of(value: Broadcast | Params | Mapping[str, Tree]) -> Broadcast:
        """The short forms: a bare `Params` is the shared group "model", a mapping is the shared groups."""
        if isinstance(value, Broadcast):
            return value
        return Broadcast(shared={"model": value} if isinstance(value, Params) else dict(value))

    @property
    def names(self) -> set[str]:
        """Everything a client finds in it, groups and config."""
        config = set() if callable(self.config) else set(self.config)
        return (set(self.shared) - set(self.hidden)) | set(self.rows) | set(self.select) | set(self.static) | config

    @property
    def uniform(self) -> bool:
        """Every client receives the same, so that clients can be trained together."""
        return not (self.rows or self.select or callable(self.config))

    def own(self, client: int) -> dict[str, Tree]:
        """What it holds for one client alone."""
        own = {name: fn(client, self.shared) for name, fn in self.rows.items()}
        for name, (source, choose) in self.select.items():
            array = self.shared[source]
            own[name] = (array.compact() if isinstance(array, Params) else array)[choose(client)]
        return own


@dataclass(frozen=True)
class Update:
    """What one client sends, or, with a leading axis C on every leaf, what C clients send.

    groups: name -> tree; by convention "model" is *local minus broadcast*: what to add.
    num_examples: int, or int64 tensor (C,).  metrics: plain numbers, or float64 tensors (C,); "loss" is the train loss.
    owned: nobody else refers to the groups' memory, so that whoever receives them may write to it.
    """

    groups: Mapping[str, Tree]
    num_examples: int | Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)
    owned: bool = False
