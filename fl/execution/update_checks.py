"""Check the replies of clients: types, the numbers beside the tensors, and the axes of several clients' updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from fl.errors import dotted
from fl.execution.training.customised import overrides
from fl.method.client import ClientAlgorithm
from fl.method.context import Reply
from fl.method.local_training import LocalTraining
from fl.method.messages import Update
from fl.method.optimiser_memory import GROUP
from fl.method.reduction import GroupReduction, Reduction
from fl.tensors.params import Layout, Params
from fl.tensors.trees import PLAIN, Tree, named_leaves, stack

MOST_EXAMPLES = 2**53  # float64 holds every integer up to here


def check_reply(reply: Any, algorithm: ClientAlgorithm, work: str) -> None:
    """Raise a TypeError if a hook returned anything but a `Reply` with an `Update` in an exchange with this work."""
    who = type(algorithm).__name__
    if not isinstance(reply, Reply):
        hook = "answer" if last_hook(algorithm, work) == "answer" else "work"
        raise TypeError(f"client {who}: {hook} returned {type(reply).__name__}, expected Reply(update=Update(...))")
    update = reply.update
    if not isinstance(update, Update):
        raise TypeError(f"client {who}: Reply.update is {type(update).__name__}, expected Update(groups, num_examples)")
    if not isinstance(update.groups, Mapping) or isinstance(update.groups, Params):
        came = type(update.groups).__name__
        raise TypeError(f'client {who}: Update.groups is {came}, expected a mapping: {{"model": Params}}')


def checked_pair(found: Any, who: str, hook: str) -> tuple[dict[str, Tree], Tree]:
    """Check that a hook returned a pair (groups, state), and return it.

    Args:
        found: what it returned.
        who: name of the client algorithm.
        hook: the hook, `finish` or `trainings`.

    Raises:
        TypeError: it is no pair, or the groups are no mapping by name.
    """
    expected = 'expected (groups, state), as in `return {"model": end.delta}, None`'
    if not (isinstance(found, tuple) and len(found) == 2):
        came = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        raise TypeError(f"client {who}: {hook} returned {came}, {expected}")
    groups, state = found
    if not isinstance(groups, Mapping) or isinstance(groups, Params):
        raise TypeError(f"client {who}: {hook} returned {type(groups).__name__} as groups, {expected}")
    return dict(groups), state


def last_hook(algorithm: ClientAlgorithm, work: str) -> str:
    """Return the name of the hook that decides what a client sends in an exchange with this work."""
    if not isinstance(algorithm, LocalTraining) or overrides(algorithm, "work"):
        return "work"
    if work != "train" and overrides(algorithm, "answer"):
        return "answer"
    return end_hook(algorithm)


def end_hook(algorithm: LocalTraining) -> str:
    """Return the name of the hook that makes an update of a training's end."""
    return "trainings" if overrides(algorithm, "trainings") else "finish"


def stacked_values(hook: str, who: str, clients: np.ndarray, values: list[Tree]) -> Tree:
    """Return the trees that a hook returned for `clients` (C,), one after another, as one with leaves (C, ...).

    Args:
        hook: name of the hook.
        who: name of the client algorithm.
        clients: the clients' ids.
        values: what it returned for each.

    Raises:
        ValueError: the tensors of two clients have other names or shapes.
    """
    first = _shapes(values[0], hook)
    for client, each in zip(clients, values):
        if (shapes := _shapes(each, hook)) != first:
            one, other = (", ".join(f"{name} {shape}" for name, shape in of) or "nothing" for of in (first, shapes))
            raise ValueError(
                f"{hook} of {who} returned {one} for client {clients[0]} and {other} for client {client}; clients that "
                "train together need tensors of the same names and shapes. Return the same, or set "
                "one_at_a_time = True"
            )
    return stack(values)


def _shapes(tree: Tree, name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and the shapes of the tensors of a tree."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for path, leaf in () if tree is None else named_leaves(tree, name):
        tensors = {dotted(path, each): leaf[each] for each in leaf} if isinstance(leaf, Params) else {path: leaf}
        found += [(where, tuple(tensor.shape)) for where, tensor in tensors.items()]
    return found


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


def check_stacked(
    groups: Mapping[str, Tree],
    state: Tree,
    carry: Tree,
    count: int,
    who: str,
    hook: str = "finish",
    shared: Tree = None,
) -> None:
    """Check what hooks returned for clients that were trained together: each leaf has a leading axis of clients.

    Args:
        groups: groups of the update.
        state: the clients' new states.
        carry: what the clients keep until the next exchange.
        count: number of clients.
        who: name of the client algorithm.
        hook: the hook that returned groups and states.
        shared: what all clients received. Its tensors have no axis of clients, also if as many rows as clients.

    Raises:
        ValueError: a leaf has no axis of clients. The message names it.
    """
    of_all = {leaf.untyped_storage().data_ptr() for _, leaf in named_leaves(shared) if isinstance(leaf, Tensor)}
    found = [(hook, each) for each in (*named_leaves(groups), *named_leaves(state, "state"))]
    for hook, (name, leaf) in (*found, *(("carry", each) for each in named_leaves(carry, "carry"))):
        if isinstance(leaf, Params):  # its axes are known, whatever the shapes of its tensors
            stacked, first = leaf.batch[:1] == (count,), next(iter(leaf), None)
            shape = () if first is None else tuple(leaf[first].shape)
            name = name if first is None else dotted(name, first)
        elif isinstance(leaf, Tensor):
            shape = tuple(leaf.shape)
            stacked = shape[:1] == (count,) and leaf.untyped_storage().data_ptr() not in of_all
        else:
            continue
        if not stacked:
            raise ValueError(
                f"client {who}: {hook} returned {name} with shape {shape} for {count} clients that train together; "
                f"its first axis has to be the clients, ({count}, ...). Set execution.plan: loop, or the class "
                f"attribute one_at_a_time = True, which trains one client at a time"
            )


def _numeric(metric: Tensor | np.ndarray, clients: np.ndarray) -> bool:
    """Whether a tensor or an array holds one real number, or one for each client."""
    real = not metric.is_complex() if isinstance(metric, Tensor) else metric.dtype.kind in "biuf"
    return real and math.prod(metric.shape) in (1, len(clients))


class TensorsDiffer(ValueError):
    """Clients sent different tensors that the reduction adds up, and it is not known which of them is wrong."""


class UpdateGroups:
    """Check the groups of clients' updates, and that those that are added up have tensors of the same names and shapes.

    Args:
        reduction: the reduction of the dispatch.
        algorithm: the client algorithm. The engine adds the group of optimisers' memory to those that it sends.
        work: what the clients do.
    """

    def __init__(self, reduction: Reduction, algorithm: ClientAlgorithm, work: str):
        hook = last_hook(algorithm, work)
        self.who, self.sends = f"client {type(algorithm).__name__}: {hook} returned", algorithm.sends
        self.way_out = "A client with nothing to send returns zeros"
        if work != "train" and hook not in ("work", "answer"):
            self.way_out = f"The exchange's work is {work!r}: define answer()"
        parts = reduction.parts if isinstance(reduction, GroupReduction) else {}
        self.known = frozenset([*algorithm.sends, GROUP])
        self.needed = [name for name in parts if name in self.known]
        references = algorithm.delta_reference  # groups that are added up -> group of the broadcast that has their form
        self.summed = {name: references.get(name, name) for name, part in parts.items() if part.linear}
        self.first: dict[str, tuple[int, Layout]] = {}  # group -> first client and what it sent

    def check(self, client: int, groups: Mapping[str, Any], received: Mapping[str, Any], trained: Params) -> None:
        """Check the update of one client, or of clients that were trained together.

        Args:
            client: its id, or that of the first one.
            groups: the groups of the update.
            received: the groups that the client received.
            trained: the tensors of the model that are trained.

        Raises:
            ValueError: a group is missing, is not one that the algorithm sends, or holds no tensors; a tensor has a
                name that is neither in the received group nor in the model; or all names are those of the received
                group and a shape differs. The message names the hook and the client.
            TensorsDiffer: the client sent other tensors than the first client of the dispatch on this worker.
        """
        if not self.known.issuperset(groups):
            strange = next(name for name in groups if name not in self.known)
            raise ValueError(
                f"{self.who} the group {strange!r} for client {client}; sends: {sorted(self.sends)}. Add it to the "
                "class attribute `sends`, or leave it out"
            )
        for name in self.needed:
            if name not in groups:
                raise ValueError(
                    f"{self.who} the groups {sorted(groups)} for client {client}, without {name!r}; expected "
                    f"{sorted(self.needed)}. {self.way_out}"
                )
        for name, sent in groups.items():
            first = self.first.get(name)
            if first is None or not isinstance(sent, Params) or sent.layout is not first[1]:
                self._check_group(client, name, sent, received, trained)

    def _check_group(self, client: int, name: str, sent: Tree, received: Mapping[str, Any], trained: Params) -> None:
        found = [] if isinstance(sent, Params) else [leaf for _, leaf in named_leaves(sent)]
        foreign = [leaf for leaf in found if not isinstance(leaf, (Params, Tensor, *PLAIN))]
        numbers = isinstance(sent, Params) or name not in self.summed or any(_has_numbers(leaf) for leaf in found)
        if sent is None or foreign or not numbers:
            came = type(foreign[0] if foreign else sent).__name__
            raise ValueError(f"{self.who} {came} in the group {name!r} for client {client}; expected Params or tensors")
        known = received.get(self.summed.get(name, name))
        if name not in self.summed or not isinstance(known, Params):
            return
        if isinstance(sent, (Tensor, dict, list)):
            came = f"a tensor of shape {tuple(sent.shape)}" if isinstance(sent, Tensor) else type(sent).__name__
            raise ValueError(
                f"{self.who} {came} in the group {name!r} for client {client}; expected Params with the tensors that "
                "it received"
            )
        if not isinstance(sent, Params):
            return
        if sent.layout is not known.layout:
            self._check_names(client, name, sent, known, trained)
        first = self.first.setdefault(name, (client, sent.layout))
        if first[1] is not sent.layout:
            raise TensorsDiffer(
                f"clients {first[0]} and {client} sent different tensors in the group {name!r}: {_form(first[1])} "
                f"and {_form(sent.layout)}"
            )

    def _check_names(self, client: int, name: str, sent: Params, known: Params, trained: Params) -> None:
        foreign = [tensor for tensor in sent if tensor not in known and tensor not in trained]
        if foreign:
            raise ValueError(
                f"{self.who} the tensor {foreign[0]!r} in the group {name!r} for client {client}; it received "
                f"{sorted(known)}"
            )
        if sent.keys() == known.keys():
            for tensor, entry in sent.layout.entries.items():
                shape = known.layout.entries[tensor].shape
                if entry.shape != shape:
                    raise ValueError(
                        f"{self.who} the tensor {tensor!r} in the group {name!r} for client {client} with the shape "
                        f"{tuple(entry.shape)}; it received {tuple(shape)}"
                    )


def _has_numbers(leaf: Any) -> bool:
    return isinstance(leaf, (Params, Tensor))


def _form(layout: Layout) -> str:
    return ", ".join(f"{entry.name}{list(entry.shape)}" for entry in layout.entries.values())
