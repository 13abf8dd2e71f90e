"""Values as trees: dataclasses, dicts, lists, tuples, `Params`, tensors, numpy arrays and plain values.

Strategy states, client states, broadcasts and updates are such trees. Two ways out of memory:

    skeleton, tensors = flatten(tree)       text + tensors: checkpoints, client states, digests; never pickle
    packed = pack(obj); obj = unpack(...)   pickle with the tensors' memory beside it: from process to process, no copies;
                                            of tensors that map a file (`map_tensor`) only where it lies
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import io
import json
import mmap
import pickle
import sys
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from fl.tensors.params import ALIGNMENT, Layout, Params

Tree = Any
_PLAIN = (type(None), bool, int, float, str)


# -- structure --------------------------------------------------------------------------------------------------------
def tree_map(fn: Callable[..., Any], tree: Tree, *rest: Tree, is_leaf: Callable[[Tree], bool] | None = None) -> Tree:
    """Apply fn to the leaves of trees of one shape; plain values are kept.

    Leaves are Params, tensors and the nodes for which `is_leaf` is true.

    >>> tree_map(lambda leaf: 2 * leaf, {"a": 1, "b": (2, "x")}, is_leaf=lambda node: isinstance(node, int))
    {'a': 2, 'b': (4, 'x')}
    """
    if isinstance(tree, (Params, Tensor)) or (is_leaf is not None and is_leaf(tree)):
        return fn(tree, *rest)
    if isinstance(tree, dict):
        return {k: tree_map(fn, v, *(r[k] for r in rest), is_leaf=is_leaf) for k, v in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(fn, *vs, is_leaf=is_leaf) for vs in zip(tree, *rest)))
    if isinstance(tree, (list, tuple)):
        return type(tree)(tree_map(fn, *vs, is_leaf=is_leaf) for vs in zip(tree, *rest))
    if dataclasses.is_dataclass(tree):
        names = [f.name for f in dataclasses.fields(tree)]
        fields = {n: (getattr(tree, n), *(getattr(r, n) for r in rest)) for n in names}
        return type(tree)(**{n: tree_map(fn, *vs, is_leaf=is_leaf) for n, vs in fields.items()})
    return tree


def row(tree: Tree, index: int | slice | Tensor) -> Tree:
    """Client `index`, or several clients by a slice or an index tensor, of a tree whose leaves have a client axis."""
    return tree_map(lambda leaf: leaf.row(index) if isinstance(leaf, Params) else leaf[index], tree)


def stack(trees: list[Tree]) -> Tree:
    """Trees of one shape, stacked along a new leading client axis."""

    def leaf(*leaves):
        if isinstance(leaves[0], Params):
            return Params(leaves[0].layout, tuple(torch.stack(bs) for bs in zip(*(p.buffers for p in leaves))))
        return torch.stack(leaves)

    return tree_map(leaf, *trees)


def moved(tree: Tree, device: torch.device | str) -> Tree:
    """The tree on a device; what is there already is not copied."""
    return tree_map(lambda leaf: leaf.to(device), tree)


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors a tree is made of, in order; of `Params` their buffers."""
    found: list[Tensor] = []
    tree_map(lambda leaf: found.extend(leaf.buffers if isinstance(leaf, Params) else [leaf]), tree)
    return found


def rebuilt(tree: Tree, tensors: list[Tensor]) -> Tree:
    """The tree with `tensors` in place of its `leaves`."""
    supply = iter(tensors)

    def leaf(old):
        return Params(old.layout, tuple(next(supply) for _ in old.buffers)) if isinstance(old, Params) else next(supply)

    return tree_map(leaf, tree)


# -- text and tensors -------------------------------------------------------------------------------------------------
def flatten(tree: Tree) -> tuple[str, list[Tensor]]:
    """(skeleton, tensors): JSON text of the structure with plain values, and the tensors it refers to, in order."""
    tensors: list[Tensor] = []

    def walk(node: Tree) -> Any:
        if isinstance(node, _PLAIN):
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
            return {"dict": [[walk(k), walk(v)] for k, v in node.items()]}
        if isinstance(node, (list, tuple)) and not hasattr(node, "_fields"):
            return {type(node).__name__: [walk(v) for v in node]}
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            kind = f"{type(node).__module__}:{type(node).__qualname__}"
            return {"class": kind, "fields": [[f.name, walk(getattr(node, f.name))] for f in dataclasses.fields(node)]}
        raise TypeError(
            f"a state holds dataclasses, dicts, lists, tuples, Params, tensors, arrays and plain values, got {type(node)}"
        )

    structure = walk(tree)
    shapes = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors]
    return json.dumps({"tree": structure, "tensors": shapes}, separators=(",", ":")), tensors


@functools.lru_cache(maxsize=1024)  # the states of all clients have one skeleton, or a few
def _parsed(skeleton: str) -> Any:
    return json.loads(skeleton)


def shapes(skeleton: str) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each tensor of a skeleton."""
    return [(getattr(torch, dtype), tuple(shape)) for dtype, shape in _parsed(skeleton)["tensors"]]


def unflatten(skeleton: str, tensors: list[Tensor]) -> Tree:
    """The inverse of `flatten`."""
    supply = iter(tensors)

    def walk(node: Any) -> Tree:
        if not isinstance(node, dict):
            return node
        if "params" in node:
            return Params(Layout.from_spec(node["params"]), tuple(next(supply) for _ in range(node["n"])))
        if "tensor" in node:
            return next(supply)
        if "array" in node:
            return next(supply).numpy()
        if "dict" in node:
            return {walk(k): walk(v) for k, v in node["dict"]}
        if "list" in node:
            return [walk(v) for v in node["list"]]
        if "tuple" in node:
            return tuple(walk(v) for v in node["tuple"])
        return _dataclass(node["class"])(**{name: walk(value) for name, value in node["fields"]})

    return walk(_parsed(skeleton)["tree"])


def _dataclass(kind: str) -> type:
    module, _, qualname = kind.partition(":")
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"checkpoint names {kind}, which is not a dataclass")
    return found


def digest(params: Params) -> str:
    """SHA-256 over the tensors in name order: name, shape, dtype and bytes of each."""
    sha = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].contiguous()
        sha.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 1:  # of a single element any stride counts as contiguous
        flat = flat.as_strided((1,), (1,))
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


# -- from process to process ------------------------------------------------------------------------------------------
class _Pickler(cloudpickle.Pickler):
    """Code by cloudpickle (user code travels by value), tensor memory out of band."""

    def reducer_override(self, obj):
        if isinstance(obj, Tensor):
            origin = getattr(obj, "origin", None)
            if origin is not None:
                return map_tensor, origin
            flat = obj.detach().contiguous()
            return _tensor, (pickle.PickleBuffer(raw_bytes(flat)), tuple(flat.shape), str(flat.dtype)[6:])
        if not isinstance(obj, (type, FunctionType)) or _everywhere(obj):
            return NotImplemented  # no code, or code that every process has: no need to look where it comes from
        return super().reducer_override(obj)


def _everywhere(code: type | FunctionType) -> bool:
    """Whether it is found by its name, in a module that every process of a run has."""
    return (code.__module__ or "").startswith(("fl.", "numpy.", "torch.")) and "<" not in code.__qualname__


def _tensor(memory, shape: tuple[int, ...], dtype: str) -> Tensor:
    memory = memoryview(memory)
    if not memory.nbytes:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    if memory.readonly:  # from the object store of another node; torch has no read-only tensors and would warn
        memory = memoryview(np.frombuffer(memory, np.uint8).copy())
    return torch.frombuffer(memory, dtype=torch.uint8).view(getattr(torch, dtype)).view(shape)


def map_tensor(path: str, offset: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """A tensor over a stretch of a file, to be read only; its `origin` is what it was made of."""
    try:
        array = np.memmap(path, dtype, "r", offset, shape)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is mapped as data, and not there: it must lie where every node sees it"
        ) from None
    array._mmap.madvise(mmap.MADV_RANDOM)  # batches are rows from anywhere: what lies beside them is not wanted
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to data
        tensor = torch.from_numpy(array)
    tensor.origin = (path, offset, shape, dtype)
    return tensor


def pack(obj: Any) -> tuple[bytes, list[memoryview]]:
    """(code, memories): a pickle, and the memory of the tensors and arrays it refers to, not copied."""
    memories: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=memories.append).dump(obj)
    return file.getvalue(), [m.raw() for m in memories]


def unpack(code: bytes, memories: list[memoryview]) -> Any:
    """The inverse of `pack`; tensors are views of `memories`."""
    return pickle.loads(code, buffers=memories)


def aligned(sizes: list[int]) -> tuple[list[int], int]:
    """Offsets for memories of `sizes` bytes laid one after another on 64-byte boundaries, and their total."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end
