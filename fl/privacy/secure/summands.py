"""What a linear reduction adds up, as vectors and counters.

reduction       vectors                 counters                             (their unit: the exact step)
Sum             u                       -                                    the clip range holds for u
WeightedMean    w u                     w                           1        the clip range holds for u
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.method.reduction import Accumulator, Product, Reduction, Sum, WeightedMean
from fl.privacy.private_sum import PrivateSum
from fl.privacy.secure.vectors import obstacle, tree_of, vectors_of
from fl.tensors.trees import Tree

Summable = Product | PrivateSum
LARGEST_LOSS = 0.1  # of an update, to keep a private sum within its bound


@dataclass(frozen=True)
class Summands:
    """What one client adds to a sum.

    Attributes:
        vectors: group -> vectors, (n,) each.
        weights: group -> weight that is part of the vectors.
        counters: integers that are sent exactly, one for each mean.
    """

    vectors: Mapping[str, list[Tensor]]
    weights: Mapping[str, float]
    counters: list[float]


def refusal(reductions: Mapping[str, Reduction]) -> str | None:
    """Return why secure aggregation cannot add up what reductions ask for; None if it can.

    >>> from fl.method.reduction import Stack
    >>> refusal({"model": Sum()}) is None, refusal({"model": Stack()})
    (True, "the group 'model' has the reduction Stack, which is no sum of dense updates")
    """
    for group, reduction in reductions.items():
        plain = any(
            isinstance(reduction, cls)
            and all(getattr(type(reduction), n) is getattr(cls, n) for n in ("lift", "merge"))
            for cls in (Sum, WeightedMean)
        )
        if not plain:
            return f"the group {group!r} has the reduction {type(reduction).__name__}, which is no sum of dense updates"
    return None


def private_bounds(reduction: PrivateSum, groups: Mapping[str, Tree]) -> tuple[float, ...]:
    """Return the clip bounds of the parts of an update with the form of `groups`."""
    assert reduction.clipping is not None, "local noise is refused"
    parts = reduction.clipping.parts(groups)
    return reduction.clipping.bounds_at(reduction.state, 1 if parts is None else len(parts), reduction.norm)


def shrinkage(reduction: Summable, count: int, levels: int) -> float:
    """Return the factor of the vectors that keeps a private sum within its bound after rounding; 1 for other sums.

    Args:
        reduction: the sum.
        count: number of elements, d.
        levels: bound / step.

    Raises:
        ValueError: it would take more than a tenth of each update.
    """
    if not isinstance(reduction, PrivateSum):
        return 1.0
    lost = (count if reduction.norm == "l1" else math.sqrt(count)) / levels
    if lost > LARGEST_LOSS:
        needed = math.ceil(math.log2(lost * levels / LARGEST_LOSS + 1)) + 1
        raise ValueError(
            f"bits: rounding {count} elements could exceed the clip bound of `privacy` by "
            f"{lost:.0%}; take at least {needed} bits"
        )
    return 1.0 - lost


def summands(reduction: Summable, acc: Accumulator) -> Summands:
    """Take the accumulator of one client apart.

    Raises:
        ValueError: a group is no tree of dense floating tensors.
    """
    if isinstance(reduction, PrivateSum):
        vectors = {group: vectors_of(tree) for group, tree in acc["sums"].items()}
        return Summands(vectors, dict.fromkeys(vectors, 1.0), (2 * acc["inside"]).tolist())
    vectors, weights, counters = {}, {}, []
    for group, part in reduction.parts.items():
        tree, weight = acc[group] if isinstance(part, WeightedMean) else (acc[group], None)
        if reason := obstacle(tree):
            raise ValueError(f"secure aggregation adds dense floating tensors, and the group {group!r} {reason}")
        vectors[group] = vectors_of(tree)
        weights[group] = 1.0 if weight is None else float(weight)
        if weight is not None:
            counters.append(weights[group])
    return Summands(vectors, weights, counters)


def accumulator(
    reduction: Summable, form: Accumulator, vectors: Mapping[str, list[Tensor]], counters: list[float]
) -> Accumulator:
    """Put sums together to an accumulator of the form of another one. Inverts `summands`."""
    if isinstance(reduction, PrivateSum):
        sums = {group: tree_of(tree, vectors[group]) for group, tree in form["sums"].items()}
        inside = torch.tensor(counters, dtype=torch.float64) / 2 if counters else torch.zeros_like(form["inside"])
        return {"sums": sums, "inside": inside}
    supply, acc = iter(counters), {}
    for group, part in reduction.parts.items():
        if isinstance(part, WeightedMean):
            acc[group] = (tree_of(form[group][0], vectors[group]), torch.tensor(next(supply), dtype=torch.float64))
        else:
            acc[group] = tree_of(form[group], vectors[group])
    return acc
