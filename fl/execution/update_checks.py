"""Check the replies of clients: types, the numbers beside the tensors, and the axes of several clients' updates."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from fl.errors import dotted
from fl.method.context import Reply
from fl.method.messages import Update
from fl.method.optimiser_memory import GROUP
from fl.method.reduction import GroupReduction, Reduction
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree, named_leaves

MOST_EXAMPLES = 2**53  # float64 holds every integer up to here


def check_reply(reply: Any, who: str) -> None:
    """Raise a TypeError if a client algorithm's `work` returned anything but a `Reply` with an `Update`.

    `who` is the name of the client algorithm.
    """
    if not isinstance(reply, Reply):
        raise TypeError(f"client {who}: work returned {type(reply).__name__}, expected Reply(update=Update(...))")
    update = reply.update
    if not isinstance(update, Update):
        raise TypeError(f"client {who}: Reply.update is {type(update).__name__}, expected Update(groups, num_examples)")
    if not isinstance(update.groups, Mapping):
        came = type(update.groups).__name__
        raise TypeError(f'client {who}: Update.groups is {came}, expected a mapping: {{"model": Params}}')


def check_numbers(update: Update, clients: np.ndarray) -> None:
    """Check `num_examples` and the metrics of the updates of `clients`, (n,).

    Raises:
        ValueError: `num_examples` is no number from 0 to 2**53, or a metric has no string as name or no number as
            value. NaN is allowed in metrics. The message names the client and the value.
    """
    examples = update.num_examples
    if isinstance(examples, Tensor):
        array = examples.detach().cpu().numpy()
        good = (array >= 0) & (array <= MOST_EXAMPLES)  # False for NaN
        wrong = None if good.all() else int(np.flatnonzero(~np.atleast_1d(good))[0])
        value: Any = None if wrong is None else np.atleast_1d(array)[wrong]
    else:
        fits = isinstance(examples, Real) and 0 <= examples <= MOST_EXAMPLES
        wrong, value = (None, None) if fits else (0, examples)
    if wrong is not None:
        raise ValueError(
            f"num_examples of client {clients[wrong]} is {value!r}; expected the number of samples, 0 to 2**53"
        )
    for name, metric in update.metrics.items():
        if not isinstance(name, str):
            raise ValueError(f"client {clients[0]}: metric {name!r} has no string as name")
        number = isinstance(metric, Real) or (isinstance(metric, (Tensor, np.ndarray)) and _numeric(metric, clients))
        if not number:
            raise ValueError(f"client {clients[0]}: metric {name!r} is {metric!r}, not a number")


def check_stacked(groups: Mapping[str, Tree], state: Tree, count: int, who: str) -> None:
    """Check what `finish` returned for clients that were trained together: each leaf has a leading axis of clients.

    Args:
        groups: groups of the update.
        state: the clients' new states.
        count: number of clients.
        who: name of the client algorithm.

    Raises:
        ValueError: a leaf has another first axis. The message names it.
    """
    for name, leaf in (*_tensors(groups), *_tensors(state, "state")):
        shape = tuple(leaf.shape)
        if shape[:1] != (count,):
            raise ValueError(
                f"client {who}: finish returned {name} with shape {shape} for {count} clients that train together; "
                f"its first axis has to be the clients, ({count}, ...). Set execution.plan: loop, or the class "
                f"attribute one_at_a_time = True, which trains one client at a time"
            )


def _tensors(tree: Tree, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree with their dotted names; a `Params` gives its first tensor, which has all its axes."""
    for name, leaf in named_leaves(tree, path):
        if isinstance(leaf, Params):
            yield from ((dotted(name, first), leaf[first]) for first in list(leaf)[:1])
        elif isinstance(leaf, Tensor):
            yield name, leaf


def _numeric(metric: Tensor | np.ndarray, clients: np.ndarray) -> bool:
    """Whether a tensor or an array holds one real number, or one for each client."""
    real = not metric.is_complex() if isinstance(metric, Tensor) else metric.dtype.kind in "biuf"
    return real and math.prod(metric.shape) in (1, len(clients))


class TensorsDiffer(ValueError):
    """Clients sent different tensors that the reduction adds up, and it is not known which of them is wrong."""


class TensorNames:
    """Check that the clients of a dispatch send tensors of the same names and shapes, for reductions that add them up.

    Args:
        reduction: the reduction of the dispatch.
        reference: group of the update -> group of the broadcast that has its form; other groups have their own name.
        sends: groups that the client algorithm says it sends. The engine adds the group of optimisers' memory itself.
    """

    def __init__(self, reduction: Reduction, reference: Mapping[str, str], sends: Collection[str]):
        self.sends, self.known = sorted(sends), frozenset([*sends, GROUP])
        parts = reduction.parts if isinstance(reduction, GroupReduction) else {}
        self.groups = {name: reference.get(name, name) for name, part in parts.items() if part.linear}
        self.first: dict[str, tuple[int, Layout]] = {}  # group -> first client and what it sent

    def check(self, client: int, groups: Mapping[str, Any], received: Mapping[str, Any], trained: Params) -> None:
        """Check the update of one client.

        Args:
            client: its id.
            groups: the groups of its update.
            received: the groups that it received.
            trained: the tensors of the model that are trained.

        Raises:
            ValueError: a group is not one that the algorithm sends, a tensor has a name that is neither in the received
                group nor in the model, or all names are those of the received group and a shape differs. The message
                names the client.
            TensorsDiffer: the client sent other tensors than the first client of the dispatch on this worker.
        """
        if not self.known.issuperset(groups):
            strange = next(name for name in groups if name not in self.known)
            raise ValueError(f"client {client}: its update has the group {strange!r}; sends: {self.sends}")
        for name, source in self.groups.items():
            sent, first = groups.get(name), self.first.get(name)
            if first is not None and isinstance(sent, Params) and sent.layout is first[1]:
                continue
            known = received.get(source)
            if not isinstance(sent, Params) or not isinstance(known, Params):
                continue
            if sent.layout is not known.layout:
                self._check_names(client, name, sent, known, trained)
            if first is not None:
                raise TensorsDiffer(
                    f"clients {first[0]} and {client} sent different tensors in the group {name!r}: {_form(first[1])} "
                    f"and {_form(sent.layout)}"
                )
            self.first[name] = (client, sent.layout)

    @staticmethod
    def _check_names(client: int, name: str, sent: Params, known: Params, trained: Params) -> None:
        foreign = [tensor for tensor in sent if tensor not in known and tensor not in trained]
        if foreign:
            raise ValueError(
                f"client {client}: the group {name!r} of its update has the tensor {foreign[0]!r}; it received "
                f"{sorted(known)}"
            )
        if sent.keys() == known.keys():
            for tensor, value in sent.items():
                if value.shape != known[tensor].shape:
                    raise ValueError(
                        f"client {client}: the tensor {tensor!r} of its update has the shape {tuple(value.shape)}; it "
                        f"received {tuple(known[tensor].shape)}"
                    )


def _form(layout: Layout) -> str:
    return ", ".join(f"{entry.name}{list(entry.shape)}" for entry in layout.entries.values())
