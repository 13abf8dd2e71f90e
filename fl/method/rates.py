"""Rates per group of parameters: a local optimiser whose steps differ in length between groups of tensors.

    w_g <- step of the optimiser on w_g with the learning rate  lr * factor_g

It is the rule of torch.optim's param groups. A factor scales the whole step, so momentum, the moments of Adam and
weight decay stay right; a factor on the gradient would cancel in Adam and would change what clipping sees.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fl.method.optimiser import Optimiser
from fl.tensors.params import Layout, Params, match


def factors_of(names: Iterable[str], rates: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of each tensor: that of the pattern that matches its name, else 1.

    >>> factors_of(["body.weight", "head.weight"], {"head.*": 10.0})
    {'body.weight': 1.0, 'head.weight': 10.0}

    Raises:
        ValueError: two patterns match the same name.
    """
    found: dict[str, float] = {}
    for name in names:
        patterns = [pattern for pattern in rates if fnmatchcase(name, pattern)]
        if len(patterns) > 1:
            raise ValueError(
                f"rates: {patterns[0]!r} and {patterns[1]!r} both match {name!r}; each parameter has one factor. "
                "Make one of the patterns narrower"
            )
        found[name] = rates[patterns[0]] if patterns else 1.0
    return found


def check_rates(rates: Mapping[str, float] | None, names: Iterable[str]) -> None:
    """Check the patterns against the names of all trained tensors.

    Raises:
        ValueError: a pattern matches no name, or two patterns match the same name.
    """
    names = list(names)
    try:
        match(names, rates or ())
    except ValueError as error:
        raise ValueError(f"rates: {error}") from None
    factors_of(names, rates or {})


@dataclass(frozen=True)
class GroupRates(Optimiser):
    """An optimiser that takes the step of each group of tensors at a multiple of the learning rate.

    >>> import torch
    >>> from fl.method.optimiser import SGD
    >>> params, grad = (Params.of({n: torch.ones(1) for n in ("body", "head")}) for _ in range(2))
    >>> rule = GroupRates(SGD(), {"head": 10.0})
    >>> rule.step(params, grad, rule.state(params), lr=0.01, t=0)
    >>> {name: round(tensor.item(), 2) for name, tensor in params.items()}
    {'body': 0.99, 'head': 0.9}

    Args:
        optimiser: the rule of a step.
        rates: glob pattern -> factor of the learning rate of the tensors whose names match. Other tensors have 1.
    """

    optimiser: Optimiser
    rates: Mapping[str, float]

    def state(self, params: Params) -> dict[str, Any]:
        return {"groups": [self.optimiser.state(group.of(params)) for group in self._groups(params)]}

    def step(self, params: Params, grad: Params, state: dict[str, Any], lr: float, t: int) -> None:
        for group, memory in zip(self._groups(params), state["groups"]):
            self.optimiser.step(group.of(params), group.of(grad), memory, lr * group.factor, t)

    def _groups(self, params: Params) -> tuple[_Group, ...]:
        return _groups(params.layout, tuple(self.rates.items()))


@dataclass(frozen=True)
class _Group:
    """Consecutive tensors of one factor: `length` elements of a buffer, from `offset` on."""

    layout: Layout
    buffer: int
    offset: int
    length: int
    factor: float

    def of(self, params: Params) -> Params:
        """The group's tensors, as a view."""
        return Params(self.layout, (params.buffers[self.buffer].narrow(-1, self.offset, self.length),))


@functools.lru_cache(maxsize=64)
def _groups(layout: Layout, rates: tuple[tuple[str, float], ...]) -> tuple[_Group, ...]:
    """The groups of a layout. Tensors of one factor that do not lie side by side make several groups."""
    factors, found = factors_of(layout.entries, dict(rates)), list[_Group]()
    for buffer, dtype in enumerate(layout.dtypes):
        runs: list[tuple[float, list[str]]] = []
        for name, entry in layout.entries.items():
            if entry.buffer != buffer:
                continue
            if not runs or runs[-1][0] != factors[name]:
                runs.append((factors[name], []))
            runs[-1][1].append(name)
        for factor, names in runs:  # tensors begin at the same boundaries as in the layout, so offsets agree
            part = Layout.of((name, layout.entries[name].shape, dtype) for name in names)
            found.append(_Group(part, buffer, layout.entries[names[0]].offset, part.lengths[0], factor))
    return tuple(found)
