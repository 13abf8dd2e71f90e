"""The dense floating leaves of a group: the leaves that error feedback and differences apply to.

They are the floating buffers of `Params` and floating tensors that stand alone. Tables and sparse vectors are left out,
because their values belong to positions.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fl.tensors.params import Params
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import Tree, tree_map


def map_dense(fn: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Replace each dense floating leaf by fn(leaf), in order."""

    def dense_or_same(tensor: Tensor) -> Tensor:
        return fn(tensor) if tensor.is_floating_point() else tensor

    def leaf(node: Params | Tensor | Table | Sparse) -> Tree:
        if isinstance(node, Params):
            return Params(node.layout, tuple(dense_or_same(buffer) for buffer in node.buffers))
        return dense_or_same(node) if isinstance(node, Tensor) else node

    return tree_map(leaf, tree, is_leaf=lambda node: isinstance(node, (Table, Sparse)))


def dense_leaves(tree: Tree) -> list[Tensor]:
    """List the dense floating leaves, in order."""
    found: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_dense(leaf, tree)
    return found
