"""Trees of values: nested dataclasses, dicts, lists, tuples and named tuples, with `Params`, tensors and plain values.

Strategy states, client states, broadcasts and updates are such trees. `map_children` is the only function that takes a
container apart and rebuilds it; every other walk over trees builds on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fl.errors import dotted
from fl.tensors.params import Params

Tree = Any
PLAIN = (type(None), bool, int, float, str)  # types of the values that `fl.tensors.serialise` writes as JSON


def is_container(node: Tree) -> bool:
    """Return whether `map_children` can take `node` apart: a dict, list, tuple, named tuple or dataclass instance."""
    return isinstance(node, (dict, list, tuple)) or (dataclasses.is_dataclass(node) and not isinstance(node, type))


def map_children(fn: Callable[..., Any], node: Tree, *rest: Tree) -> Tree:
    """Rebuild a container with `fn` applied to its direct children, and to those of `rest`, which have the same shape.

    >>> map_children(lambda a, b: a + b, {"x": 1, "y": 2}, {"x": 10, "y": 20})
    {'x': 11, 'y': 22}
    """
    if isinstance(node, dict):
        return {k: fn(v, *(r[k] for r in rest)) for k, v in node.items()} if rest else {k: fn(node[k]) for k in node}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*(fn(*vs) for vs in zip(node, *rest)))
    if isinstance(node, (list, tuple)):
        return type(node)(fn(*vs) for vs in zip(node, *rest))
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [f.name for f in dataclasses.fields(node)]
        return type(node)(**{n: fn(getattr(node, n), *(getattr(r, n) for r in rest)) for n in names})
    raise TypeError(f"{type(node)} is not a dict, list, tuple or dataclass")


def tree_map(fn: Callable[..., Any], tree: Tree, *rest: Tree, is_leaf: Callable[[Tree], bool] | None = None) -> Tree:
    """Apply `fn` to the leaves of trees of one shape. Plain values are kept.

    Leaves are `Params`, tensors and the nodes for which `is_leaf` is true.

    >>> tree_map(lambda a, b: a + b, [torch.ones(1), "x"], [torch.ones(1), "x"])
    [tensor([2.]), 'x']
    >>> tree_map(lambda leaf: 2 * leaf, {"a": 1, "b": (2, "x")}, is_leaf=lambda node: isinstance(node, int))
    {'a': 2, 'b': (4, 'x')}
    """
    if isinstance(tree, (Params, Tensor)) or (is_leaf is not None and is_leaf(tree)):
        return fn(tree, *rest)
    if not is_container(tree):
        return tree
    return map_children(lambda *nodes: tree_map(fn, *nodes, is_leaf=is_leaf), tree, *rest)


def row(tree: Tree, index: int | slice | Tensor) -> Tree:
    """Return client `index`, or clients by a slice or an index tensor, of a tree with a leading client axis."""
    return tree_map(lambda leaf: leaf.row(index) if isinstance(leaf, Params) else leaf[index], tree)


def stack(trees: list[Tree]) -> Tree:
    """Stack trees of one shape along a new leading client axis.

    >>> stack([{"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}])["a"].tolist()
    [[1.0], [2.0]]
    """

    def stack_leaves(*leaves: Any) -> Params | Tensor:
        if isinstance(leaves[0], Params):
            return Params(leaves[0].layout, tuple(torch.stack(bs) for bs in zip(*(p.buffers for p in leaves))))
        return torch.stack(leaves)

    return tree_map(stack_leaves, *trees)


def to_device(tree: Tree, device: torch.device | str) -> Tree:
    """Copy the leaves to a device. Leaves that are already there are not copied."""
    return tree_map(lambda leaf: leaf.to(device), tree)


def leaves(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree in order; a `Params` contributes its buffers.

    >>> [t.shape[0] for t in leaves({"a": torch.ones(2), "b": [torch.ones(3), 7]})]
    [2, 3]
    """
    found: list[Tensor] = []
    tree_map(lambda leaf: found.extend(leaf.buffers if isinstance(leaf, Params) else [leaf]), tree)
    return found


def named_leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield everything in a tree that is no container, with its dotted name below `path`. A `Params` is one leaf.

    >>> list(named_leaves({"a": [1, "x"], "b": (2.5,)}, "state"))
    [('state.a.0', 1), ('state.a.1', 'x'), ('state.b.0', 2.5)]
    """
    if isinstance(tree, Mapping) and not isinstance(tree, Params):
        children: Iterable[tuple[Any, Tree]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        children = enumerate(tree)
    elif is_container(tree):
        children = ((field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree))
    else:
        yield path, tree
        return
    for key, value in children:
        yield from named_leaves(value, dotted(path, key))


def replace_leaves(tree: Tree, tensors: list[Tensor]) -> Tree:
    """Return the tree with `tensors` in place of its `leaves`."""
    supply = iter(tensors)

    def next_leaf(old: Params | Tensor) -> Params | Tensor:
        return Params(old.layout, tuple(next(supply) for _ in old.buffers)) if isinstance(old, Params) else next(supply)

    return tree_map(next_leaf, tree)
