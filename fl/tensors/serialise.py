"""Trees as text and tensors, for checkpoints, client states and digests. Never pickle.

skeleton, tensors = flatten(tree)       skeleton: JSON text of the structure with the plain values
tree = unflatten(skeleton, tensors)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.tensors.params import ALIGNMENT, Layout, Params
from fl.tensors.trees import PLAIN, Tree


def flatten(tree: Tree, stacked: bool = False) -> tuple[str, list[Tensor]]:
    """Return (skeleton, tensors): the structure with its plain values as JSON text, and the tensors in order.

    A value of any other type is a `TypeError`. With `stacked` several trees are stacked in `tree` (`fl.tensors.trees`):
    the skeleton is that of each of them, and the tensors have the leading axis.

    >>> skeleton, tensors = flatten({"round": 3, "velocity": torch.ones(2)})
    >>> unflatten(skeleton, tensors)
    {'round': 3, 'velocity': tensor([1., 1.])}
    """
    tensors: list[Tensor] = []
    structure = _described(tree, tensors)
    shapes = [[str(t.dtype).removeprefix("torch."), list(t.shape[stacked:])] for t in tensors]
    return json.dumps({"tree": structure, "tensors": shapes}, separators=(",", ":")), tensors


# no function inside `flatten`: one that calls itself is a reference cycle, which would keep the tensors of each state
def _described(node: Tree, tensors: list[Tensor]) -> Any:
    """Return the structure of a node, and append its tensors to `tensors`."""
    if isinstance(node, PLAIN):
        return node
    if isinstance(node, Params):
        tensors.extend(node.buffers)
        return {"params": node.layout.spec, "n": len(node.buffers)}
    if isinstance(node, Tensor):
        tensors.append(node.detach())
        return {"tensor": None}
    if isinstance(node, (np.ndarray, np.generic)):
        tensors.append(torch.from_numpy(np.array(node)))
        return {"array": str(node.dtype)}
    if isinstance(node, dict):
        return {"dict": [[_described(k, tensors), _described(v, tensors)] for k, v in node.items()]}
    if isinstance(node, (list, tuple)) and not hasattr(node, "_fields"):
        return {type(node).__name__: [_described(v, tensors) for v in node]}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        kind = f"{type(node).__module__}:{type(node).__qualname__}"
        fields = [[f.name, _described(getattr(node, f.name), tensors)] for f in dataclasses.fields(node)]
        return {"class": kind, "fields": fields}
    raise TypeError(
        "a state may hold dataclasses, dicts, lists, tuples, Params, tensors, arrays and plain values, "
        f"got {type(node)}"
    )


@functools.lru_cache(maxsize=1024)  # the states of all clients share one skeleton, or a few
def _parsed(skeleton: str) -> Any:
    return json.loads(skeleton)


def shapes(skeleton: str) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Return the dtype and the shape of each tensor of a skeleton."""
    return [(getattr(torch, dtype), tuple(shape)) for dtype, shape in _parsed(skeleton)["tensors"]]


def unflatten(skeleton: str, tensors: list[Tensor], plain: bool = False) -> Tree:
    """Invert `flatten`.

    Args:
        skeleton: the structure.
        tensors: the tensors in order.
        plain: make a dict of each dataclass, so that no code of the run is needed.

    Raises:
        ValueError: the skeleton names a class that no imported module has. Nothing is imported, because the skeleton
            may come from a stranger.
    """
    return _built(_parsed(skeleton)["tree"], iter(tensors), plain)


def _built(node: Any, supply: Iterator[Tensor], plain: bool) -> Tree:
    """Return the tree of a structure, with the next tensors of `supply`."""
    if not isinstance(node, dict):
        return node
    if "params" in node:
        return Params(Layout.from_spec(node["params"]), tuple(next(supply) for _ in range(node["n"])))
    if "tensor" in node:
        return next(supply)
    if "array" in node:
        return next(supply).numpy()
    if "dict" in node:
        return {_built(k, supply, plain): _built(v, supply, plain) for k, v in node["dict"]}
    if "list" in node:
        return [_built(v, supply, plain) for v in node["list"]]
    if "tuple" in node:
        return tuple(_built(v, supply, plain) for v in node["tuple"])
    fields = {name: _built(value, supply, plain) for name, value in node["fields"]}
    return fields if plain else _dataclass(node["class"])(**fields)


def _dataclass(kind: str) -> type:
    module, _, qualname = kind.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"the checkpoint names {kind}, which is not a dataclass of this run")
    return found


def digest(params: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over name, shape, dtype and bytes of each tensor, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].contiguous()
        sha.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, without a copy."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 1:  # a single element is contiguous with any stride
        flat = flat.as_strided((1,), (1,))
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def aligned_offsets(sizes: list[int]) -> tuple[list[int], int]:
    """Return the offsets of buffers of `sizes` bytes on consecutive 64-byte boundaries, and their total size.

    >>> aligned_offsets([1, 64, 65])
    ([0, 64, 128], 256)
    """
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end
