"""The reduction of private exchanges: clip each update, weigh it, and add it up."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.method.reduction import GroupReduction, Meta, Reduction, Sum, WeightedMean
from fl.privacy.clipping import Clipping, Part
from fl.privacy.mechanism import Norm
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree

Clipped = dict[str, Any]  # "sums": group -> sum; "inside": (K,) for K parts


@dataclass(frozen=True)
class PrivateSum(GroupReduction):
    """sum_i w_i clip(u_i) over all groups of the updates together, with w_i <= 1. It replaces a strategy's reductions.

    It returns sums; the server adds noise and divides by a constant (`divisors`), never by what arrived.

    Args:
        parts: the strategy's reduction of each group: a mean is divided by the expected cohort, a sum is not.
        clipping: which parts of an update are clipped, and to which bounds; None: clients clip (local privacy).
        state: the state of `clipping`.
        norm: the norm of the mechanism.
        cap: a mean weighs a client with min(n_i, cap) / cap for n_i training samples; None: with 1.
    """

    clipping: Clipping | None
    state: Tree = None
    norm: Norm = "l2"
    cap: int | None = None
    linear: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def lift(self, value: Mapping[str, Tree], meta: Meta) -> Clipped:
        """Return the clipped and weighted groups, and which parts were within their bounds, minus 1/2.

        Raises:
            ValueError: a group is neither Params nor a dense tensor of floating-point numbers.
        """
        batch = torch.as_tensor(meta.client).shape
        groups = {name: value[name] for name in self.parts}
        for name, tree in groups.items():
            require_dense(name, tree)
        if self.clipping is None:
            inside = torch.zeros(*batch, 0, dtype=torch.float64)
            clipped = {name: _scaled(tree, torch.ones(batch, dtype=torch.float64)) for name, tree in groups.items()}
        else:
            clipped, within = clip(groups, self.clipping, self.state, self.norm, batch, meta.owned)
            inside = within.double() - 0.5
        if self.cap is not None:
            examples = torch.as_tensor(meta.num_examples, dtype=torch.float64)
            weights = examples.clamp(max=self.cap) / self.cap
            means = [name for name, rule in self.parts.items() if isinstance(rule, WeightedMean)]
            clipped |= {name: _scale_in_place(clipped[name], weights) for name in means}
        return {"sums": clipped, "inside": inside}

    def merge(self, a: Clipped, b: Clipped) -> Clipped:
        sums = {name: tree.add_(b["sums"][name]) for name, tree in a["sums"].items()}
        return {"sums": sums, "inside": a["inside"].add_(b["inside"])}

    def divisors(self, expected: float) -> dict[str, float]:
        """Return the constant that each group's noisy sum is divided by. `expected`: expected clients of a cohort."""
        return {name: 1.0 if isinstance(rule, Sum) else expected for name, rule in self.parts.items()}


def refusal(reductions: Mapping[str, Reduction]) -> str:
    """Return why reductions are no bounded sums, in words; "" if they are.

    >>> from fl.method.reduction import Stack
    >>> refusal({"model": WeightedMean(), "control": Sum()}), refusal({"model": Stack()})[:40]
    ('', "the reduction Stack of the group 'model'")
    """
    for name, rule in reductions.items():
        if type(rule) not in (WeightedMean, Sum):
            return (
                f"the reduction {type(rule).__name__} of the group {name!r} is no bounded sum of the clients' updates, "
                "so one client's effect on it is not known"
            )
    return ""


def require_dense(name: str, tree: Tree) -> None:
    """Require that a group is `Params` or a dense tensor, of floating-point numbers.

    Raises:
        ValueError: it is not.
    """
    tensors = tree.buffers if isinstance(tree, Params) else (tree,)
    if not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors):
        came = type(tree).__name__
        raise ValueError(
            f"privacy: the group {name!r} of an update is {came}, and clipping needs Params or a dense tensor of "
            "floating-point numbers; use a method that sends only such groups"
        )


def clip(
    groups: Mapping[str, Tree],
    clipping: Clipping,
    state: Tree,
    norm: Norm,
    batch: torch.Size,
    in_place: bool = False,
) -> tuple[dict[str, Tree], Tensor]:
    """Clip an update, or stacked updates: (clipped update, whether each of K parts was within its bound, (*batch, K)).

    Args:
        groups: group -> Params or tensor, with the leading axes `batch`.
        clipping: tells the parts and their bounds.
        state: its state.
        norm: "l2" or "l1".
        batch: () for one client, (C,) for C clients.
        in_place: whether to write into the memory of the groups; otherwise the clipped update is a copy.
    """
    parts = parts_of(clipping, groups, len(batch))
    norms = torch.stack([_norm(groups, part, norm, batch) for part in parts or (None,)], -1)
    bounds = norms.new_tensor(clipping.bounds_at(state, norms.shape[-1], norm))
    factors = bounds / norms.maximum(bounds)
    if parts is None:
        scale = _scale_in_place if in_place else _scaled
        return {name: scale(tree, factors[..., 0]) for name, tree in groups.items()}, norms <= bounds
    clipped = {name: tree if in_place else tree.clone() for name, tree in groups.items()}
    for k, part in enumerate(parts):
        for group, name in part:
            tensor = clipped[group][name] if name else clipped[group]
            tensor.mul_(_per_client(factors[..., k], tensor))
    return clipped, norms <= bounds


def parts_of(clipping: Clipping, groups: Mapping[str, Tree], batch: int) -> tuple[Part, ...] | None:
    """Return the parts that a clipping makes of groups with `batch` leading axes."""
    return _parts_of(clipping, tuple((name, _form(tree, batch)) for name, tree in groups.items()))


def _form(tree: Tree, batch: int) -> Layout | tuple[int, ...]:
    return tree.layout if isinstance(tree, Params) else tuple(tree.shape[batch:])


@functools.lru_cache(maxsize=64)  # a run has one or two forms of updates, and each client needs this
def _parts_of(clipping: Clipping, forms: tuple[tuple[str, Layout | tuple[int, ...]], ...]) -> tuple[Part, ...] | None:
    groups = {name: form.zeros() if isinstance(form, Layout) else torch.zeros(form) for name, form in forms}
    return clipping.parts(groups)


def _norm(groups: Mapping[str, Tree], part: Part | None, norm: Norm, batch: torch.Size) -> Tensor:
    """Return the norm of one part, (*batch,), in double precision.

    Each client is summed by itself, so that its bits do not depend on the clients that it trains with.
    """
    tensors: list[Tensor] = []
    for group, tree in groups.items() if part is None else ():
        tensors += tree.buffers if isinstance(tree, Params) else [tree]
    for group, name in part or ():
        tensors.append(groups[group][name] if name else groups[group])
    total = torch.zeros(batch, dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        rows = tensor[None] if not batch else tensor
        sums = [(row.abs() if norm == "l1" else row * row).sum() for row in rows]
        total = total + torch.stack(sums).double().reshape(batch)
    return total if norm == "l1" else total.sqrt()


def _scaled(tree: Tree, factor: Tensor) -> Tree:
    """Return a scaled copy; `factor` is () or (C,)."""
    if isinstance(tree, Params):
        return Params(tree.layout, tuple(buffer * _per_client(factor, buffer) for buffer in tree.buffers))
    return tree * _per_client(factor, tree)


def _scale_in_place(tree: Tree, factor: Tensor) -> Tree:
    for tensor in tree.buffers if isinstance(tree, Params) else (tree,):
        tensor.mul_(_per_client(factor, tensor))
    return tree


def _per_client(factor: Tensor, tensor: Tensor) -> Tensor:
    return factor.to(tensor).reshape(*factor.shape, *(1,) * (tensor.ndim - factor.ndim))
