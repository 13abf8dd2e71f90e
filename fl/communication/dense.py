"""The dense floating leaves of a group, which errors and differences are of: buffers of `Params`, and tensors that stand alone.
Tables and sparse vectors, whose values belong to positions, are not among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from fl.tensors.params import Params
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import Tree


def map_dense(fn: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The tree with fn(leaf) in the place of its dense floating leaves, in order."""
    if isinstance(tree, Params):
        return Params(tree.layout, tuple(fn(b) if b.is_floating_point() else b for b in tree.buffers))
    if isinstance(tree, Tensor):
        return fn(tree) if tree.is_floating_point() else tree
    if isinstance(tree, (Table, Sparse)):
        return tree
    if isinstance(tree, dict):
        return {k: map_dense(fn, v) for k, v in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_dense(fn, v) for v in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_dense(fn, v) for v in tree)
    if dataclasses.is_dataclass(tree):
        return type(tree)(**{f.name: map_dense(fn, getattr(tree, f.name)) for f in dataclasses.fields(tree)})
    return tree


def dense(tree: Tree) -> list[Tensor]:
    found: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_dense(leaf, tree)
    return found
