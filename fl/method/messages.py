"""Messages between server and clients: `Broadcast` down, `Update` up.

    server  -- Broadcast: shared | rows | select | static, + config -->  client
    server  <-- Update: groups of named tensors, num_examples, metrics --  client

A group is a tree of `Params`, tensors, `Table`s and `Sparse` values. The ledger counts bytes per group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fl.tensors.params import Params
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Static:
    """A value that clients keep, such as a frozen base model. A client receives it when its version has changed.

    A value that changes little from version to version can be sent as patches: `patches[v]` leads from version v to
    the next version. A client that last received version v gets the patches from v on, or the whole value, whichever
    has fewer encoded bytes. A client whose version has no patch gets the whole value. With a codec that is not exact,
    the whole value is the last key version and the patches since then, and all clients get each key version
    (`fl.simulation.static_groups`).

        v: value_v  -- patches[v] -->  v': value_v'  -- patches[v'] -->  ...  -->  version: value

    `ClientAlgorithm.patched` applies one patch; by default it adds the patch. Both ways must end in the same bits.
    Compute each new value with that function from the last value and the patch; the engine checks it. Version -1 is
    what a client has before it receives anything. Keep a patch as long as it and those after it are smaller than the
    value.

    >>> import torch
    >>> Static(7, torch.tensor(6.0), {3: torch.tensor(1.0), 5: torch.tensor(2.0)}).path(5)
    (5,)

    Args:
        version: number of the value; change it with the value.
        value: the value.
        patches: version -> change that leads to the next version; the last one leads to `version`.
    """

    version: int
    value: Tree
    patches: Mapping[int, Tree] = field(default_factory=dict)

    def path(self, version: int) -> tuple[int, ...]:
        """Return the keys of the patches that lead from `version` to the value, in order; () if there are none."""
        return tuple(v for v in sorted(self.patches) if v >= version) if version in self.patches else ()


@dataclass(frozen=True)
class Broadcast:
    """What the server sends in one exchange.

    >>> import torch
    >>> broadcast = Broadcast(
    ...     shared={"table": torch.tensor([10.0, 20.0, 30.0])},
    ...     select={"part": ("table", lambda client, state: torch.tensor([0, client]))},
    ...     hidden=("table",),
    ... )
    >>> broadcast.groups_for(2, None), broadcast.names
    ({'part': tensor([10., 30.])}, {'part'})

    Args:
        shared: group -> tree, the same for all clients. Encoded once; the ledger counts it once per receiving client,
            and once for multicast.
        rows: group -> function of (client, shared, state) that returns the client's tree, computed on the worker.
            `state` is the client's state from its last participation, None before the first. It is read-only.
        select: group -> (name of a shared group, function of (client, state) that returns int64 indices). The client
            receives the selected rows of a tensor, or elements of a `Params` (positions in `compact` order). The
            ledger counts only these values, not the indices: both sides know them, from the client's id or state.
            k float32 elements cost 4 k bytes. A method whose clients must be told the indices sends them in `rows`.
        static: group -> `Static`, sent and counted when its version is new to the client, whole or as patches.
        config: values for the client by name, or a function of the client that returns them. The ledger does not
            count them.
        hidden: shared groups that are not sent whole, because clients only select from them.
    """

    shared: Mapping[str, Tree] = field(default_factory=dict)
    rows: Mapping[str, Callable[[int, Mapping[str, Tree], Tree], Tree]] = field(default_factory=dict)
    select: Mapping[str, tuple[str, Callable[[int, Tree], Tensor]]] = field(default_factory=dict)
    static: Mapping[str, Static] = field(default_factory=dict)
    config: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()

    @staticmethod
    def of(value: Broadcast | Params | Mapping[str, Tree]) -> Broadcast:
        """Return a broadcast from a short form: `Params` is the shared group "model", a mapping is `shared`."""
        if isinstance(value, Broadcast):
            return value
        return Broadcast(shared={"model": value} if isinstance(value, Params) else dict(value))

    @property
    def names(self) -> set[str]:
        """Names of the groups and config values that a client receives. Config from a function is not included."""
        config = set() if callable(self.config) else set(self.config)
        return (set(self.shared) - set(self.hidden)) | set(self.rows) | set(self.select) | set(self.static) | config

    @property
    def uniform(self) -> bool:
        """Whether every client receives the same, so that clients can be trained together."""
        return not (self.rows or self.select or callable(self.config))

    def with_model(self, model: Params) -> Broadcast:
        """Return the same broadcast with the shared group "model", which clients see."""
        hidden = tuple(name for name in self.hidden if name != "model")
        return replace(self, shared={**self.shared, "model": model}, hidden=hidden)

    def groups_for(self, client: int, state: Tree) -> dict[str, Tree]:
        """Return the groups that only this client receives: `rows` and `select`. `state`: the client's state."""
        groups = {name: fn(client, self.shared, state) for name, fn in self.rows.items()}
        for name, (source, choose) in self.select.items():
            array = self.shared[source]
            groups[name] = (array.compact() if isinstance(array, Params) else array)[choose(client, state)]
        return groups


@dataclass(frozen=True)
class Update:
    """What one client sends. For C clients every leaf has a leading axis C.

    Args:
        groups: name -> tree. By convention "model" is local minus broadcast.
        num_examples: number of training samples, an int; for C clients an int64 tensor (C,).
        metrics: name -> number; for C clients float64 tensors (C,). "loss" is the mean training loss.
        owned: True if nothing else refers to the groups' memory, so that the receiver may write to it.
    """

    groups: Mapping[str, Tree]
    num_examples: int | Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)
    owned: bool = False
