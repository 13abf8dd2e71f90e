"""The floating vectors of a tree, in a fixed order, and the tree from its vectors.

A `Params` is one vector per dtype, without padding; a tensor is one vector. Leading axes stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fl.tensors.params import Params
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import Tree, leaves, tree_map


def obstacle(tree: Tree) -> str | None:
    """Return why a tree is no group of dense floating tensors; None if it is one."""
    found: list[str] = []

    def look(leaf: Tree) -> Tree:
        found.append(type(leaf).__name__)
        return leaf

    tree_map(look, tree, is_leaf=lambda node: isinstance(node, (Sparse, Table)))
    if sparse := {"Sparse", "Table"} & set(found):
        return f"holds {' and '.join(sorted(sparse))}, whose positions differ from client to client"
    if not found:
        return "holds no tensor"
    whole = [str(leaf.dtype) for leaf in leaves(tree) if not leaf.is_floating_point()]
    return f"holds tensors of {whole[0]}" if whole else None


def vectors_of(tree: Tree, stacked: bool = False) -> list[Tensor]:
    """Return the vectors of a tree, (n,) each, or (C, n) with a leading axis of clients if `stacked`."""
    found: list[Tensor] = []

    def take(leaf: Params | Tensor) -> None:
        if isinstance(leaf, Params):
            found.extend(part.compact() for part in _by_dtype(leaf))
        else:
            found.append(leaf.reshape(*leaf.shape[:1], -1) if stacked else leaf.reshape(-1))

    tree_map(take, tree)
    return found


def tree_of(form: Tree, vectors: Sequence[Tensor]) -> Tree:
    """Return a tree of the form of another one, without leading axis, from its vectors (n,)."""
    supply = iter(vectors)

    def put(leaf: Params | Tensor) -> Params | Tensor:
        if isinstance(leaf, Params):
            parts = [
                Params.expand(part.layout, next(supply).to(part.buffers[0].dtype)) for part in _by_dtype(leaf.clone())
            ]
            return Params(leaf.layout, tuple(part.buffers[0] for part in parts))
        return next(supply).to(leaf.dtype).reshape(leaf.shape)

    return tree_map(put, form)


def _by_dtype(params: Params) -> list[Params]:
    """Return parameters of one dtype each, over the same buffers."""
    if len(params.buffers) == 1:
        return [params]
    entries = params.layout.entries.values()
    parts = []
    for k, (dtype, buffer) in enumerate(zip(params.layout.dtypes, params.buffers)):
        layout = type(params.layout).of((e.name, e.shape, dtype) for e in entries if e.buffer == k)
        parts.append(Params(layout, (buffer,)))
    return parts
