"""Find clients that write into values that others read: the broadcast, the first model, the data, and their old state.

Workers look after each client of the first round. The next client on the worker would read what was written, and other
workers would not, so the run stops and names the client. Values are compared by hash (XXH3, 64 bits).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from fl.errors import dotted
from fl.tensors.params import Params
from fl.tensors.serialise import raw_bytes
from fl.tensors.trees import Tree, named_leaves

LARGE = 1 << 22  # bytes, above which data are compared after the clients 1, 2, 4, 8, ... of a worker, and the last
HUGE = 1 << 30  # bytes, above which only `ROWS` rows of data are compared
ROWS = 4096


class SharedValueWritten(RuntimeError):
    """A client wrote into a value that is not its own."""


class SharedValues:
    """Hashes of values.

    Args:
        values: name -> tree.
        thrifty: the values are data: compare large ones less often, and huge ones in part.
    """

    def __init__(self, values: Mapping[str, Tree], thrifty: bool = False):
        self.values = values
        nbytes = sum(leaf.nbytes for _, leaf in _leaves(values) if isinstance(leaf, (Tensor, np.ndarray)))
        self.large, self.huge = thrifty and nbytes > LARGE, thrifty and nbytes > HUGE
        self.before = self._hashes()
        self.checks = 0
        self.suspects: list[int] = []  # clients since the last comparison

    def check(self, clients: Iterable[int], last: bool = False) -> None:
        """Raise `SharedValueWritten` if `clients`, or other `suspects`, have written into a value.

        `last`: compare large values, too.
        """
        self.suspects += map(int, clients)
        self.checks += 1
        if not self.suspects or (self.large and not last and self.checks & (self.checks - 1)):
            return
        now = self._hashes()
        for name in (*self.before, *now):
            if name not in now or name not in self.before or now[name] != self.before[name]:
                raise SharedValueWritten(f"it wrote into {name}; change a copy, as in x = x.clone()")
        self.suspects = []

    def _hashes(self) -> dict[str, Any]:
        return {name: _hash(leaf, self.huge) for name, leaf in _leaves(self.values)}


def _leaves(values: Mapping[str, Tree]) -> Iterator[tuple[str, Any]]:
    """Tensors, arrays, numbers and texts of trees, with their dotted names."""
    for name, leaf in named_leaves(values):
        if isinstance(leaf, Params):
            yield from ((dotted(name, key), tensor) for key, tensor in leaf.items())
        elif isinstance(leaf, (Tensor, np.ndarray, bool, int, float, str)):
            yield name, leaf


def _hash(leaf: Any, sampled: bool) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(leaf) if leaf.dtype.kind in "biufc" and leaf.flags.writeable else None
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.layout != torch.strided:
        return None
    if sampled and leaf.ndim and len(leaf) > ROWS:
        leaf = leaf[torch.linspace(0, len(leaf) - 1, ROWS, device=leaf.device).long()]
    return tuple(leaf.shape), leaf.dtype, xxhash.xxh3_64_intdigest(raw_bytes(leaf.detach().cpu().contiguous()))
