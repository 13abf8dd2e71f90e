"""Means of groups of clients, such as edges, clusters or tiers.

value_g = sum_{i in g} w_i value_i / W_g,      W_g = sum_{i in g} w_i           `Grouped`
sum_g c_g value_g                                                                `weighted_sum`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.method.reduction import Meta, Reduction, WeightedMean
from fl.tensors.params import Params
from fl.tensors.trees import Tree


class GroupMean(NamedTuple):
    """The mean of one group and the sum of its weights."""

    mean: Any
    weight: float


@dataclass(frozen=True)
class ByClient:
    """Group clients by a fixed table.

    Args:
        groups: (N,) integers, the group of each client.
    """

    groups: np.ndarray

    def __call__(self, value: Tree, meta: Meta) -> tuple[int, Tree]:
        return int(self.groups[int(meta.client)]), value


@dataclass(frozen=True)
class Grouped(Reduction):
    """Mean of each group: a dict group -> `GroupMean`, in ascending order, without groups of weight 0.

    The memory is one value for each group, whatever the size of the cohort.

    Args:
        member: (update, its Meta) -> (group, value to average), such as `ByClient`; None leaves the update out.
        mean: the mean within a group.
    """

    member: Callable[[Any, Meta], tuple[int, Tree] | None]
    mean: WeightedMean = field(default_factory=WeightedMean)
    linear: ClassVar[bool] = True

    def lift(self, value: Tree, meta: Meta) -> dict[int, Any]:
        found = self.member(value, meta)
        return {} if found is None else {found[0]: self.mean.lift(found[1], meta)}

    def merge(self, a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
        both = {group: self.mean.merge(a[group], b[group]) for group in a.keys() & b.keys()}
        return {**a, **b, **both}

    def finish(self, acc: dict[int, Any]) -> dict[int, GroupMean]:
        means = {group: GroupMean(self.mean.finish(acc[group]), float(acc[group][1])) for group in sorted(acc)}
        return {group: mean for group, mean in means.items() if mean.weight}


def weighted_sum(terms: Iterable[tuple[float, Params]]) -> Params:
    """Return the sum of weight * parameters over the terms, added in their order. There must be at least one.

    >>> import torch
    >>> one, two = (Params.of({"w": torch.tensor([value])}) for value in (1.0, 10.0))
    >>> weighted_sum([(0.5, one), (0.25, two)])["w"].tolist()
    [3.0]
    """
    first, *rest = (weight * params for weight, params in terms)
    return sum(rest, first)
