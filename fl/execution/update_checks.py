"""Check the replies of clients: types, the numbers beside the tensors, and the axes of several clients' updates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from fl.errors import dotted
from fl.method.context import Reply
from fl.method.messages import Update
from fl.tensors.params import Params
from fl.tensors.trees import Tree

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
    for name, leaf in (*_leaves("", groups), *_leaves("state", state)):
        shape = tuple(leaf.shape)
        if shape[:1] != (count,):
            raise ValueError(
                f"client {who}: finish returned {name} with shape {shape} for {count} clients that train together; "
                f"its first axis has to be the clients, ({count}, ...). Set execution.plan: loop, or the class "
                f"attribute one_at_a_time = True, which trains one client at a time"
            )


def _leaves(path: str, tree: Tree) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree with their dotted names; a `Params` gives its first tensor, which has all its axes."""
    if isinstance(tree, Params):
        yield from ((dotted(path, name), tree[name]) for name in list(tree)[:1])
    elif isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(dotted(path, key), value)
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _leaves(dotted(path, index), value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from _leaves(dotted(path, field.name), getattr(tree, field.name))


def _numeric(metric: Tensor | np.ndarray, clients: np.ndarray) -> bool:
    """Whether a tensor or an array holds one real number, or one for each client."""
    real = not metric.is_complex() if isinstance(metric, Tensor) else metric.dtype.kind in "biuf"
    return real and math.prod(metric.shape) in (1, len(clients))
