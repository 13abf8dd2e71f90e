"""Flower's records: copies, sizes, and trees to keep them as.

copied(content)      a RecordDict that shares nothing with another that could be changed
sizes(content)       [(record's name, payload bytes, encoded bytes, wire bytes)]
digest(content)      a hash of all there is in it
tree(content)        what `fl.storage` keeps: text and byte arrays;   content(tree) is the inverse
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.communication.wire import wire_bytes
from fl.tensors.trees import Tree

RecordSizes = list[tuple[str, int, int, int]]
KINDS = {"array": ArrayRecord, "metric": MetricRecord, "config": ConfigRecord}


def copied(content: RecordDict) -> RecordDict:
    """A copy; the arrays' bytes, which nobody can change, are shared."""
    return RecordDict({name: _copied(record) for name, record in content.items()})


def _copied(record: Any) -> Any:
    if isinstance(record, ArrayRecord):
        return ArrayRecord({name: Array(a.dtype, tuple(a.shape), a.stype, a.data) for name, a in record.items()})
    return type(record)({key: list(value) if isinstance(value, list) else value for key, value in record.items()})


def sizes(content: RecordDict) -> RecordSizes:
    """The bytes of each record: of its tensors, as Flower encodes it, and as (part of) a message."""
    found = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            payload = sum(_payload(array) for array in record.values())
            encoded, arrays = sum(len(array.data) for array in record.values()), len(record)
        else:
            payload, encoded, arrays = 0, len(record.deflate()), 0
        found.append((name, payload, encoded, wire_bytes(encoded, arrays, message=not found)))
    return found


def _payload(array: Array) -> int:
    try:
        return math.prod(array.shape) * np.dtype(array.dtype).itemsize
    except TypeError:  # an encoding of the app's own
        return len(array.data)


def digest(content: RecordDict) -> str:
    """SHA-256 of names, kinds and values."""
    found = hashlib.sha256()
    for name, record in content.items():
        found.update(f"{name!r} {_kind(record)}\n".encode())
        for key, value in record.items():
            if isinstance(value, Array):
                found.update(f"{key!r} {value.dtype} {tuple(value.shape)} {value.stype}\n".encode() + value.data)
            else:
                found.update(f"{key!r} {value!r}\n".encode())
    return found.hexdigest()


def tree(content: RecordDict) -> Tree:
    """Text, numbers and byte arrays."""
    return [
        [name, _kind(record), [[key, _leaf(value)] for key, value in record.items()]]
        for name, record in content.items()
    ]


def content(tree: Tree) -> RecordDict:
    """The inverse of `tree`; `None` is an empty one."""
    return RecordDict(
        {name: KINDS[kind]({key: _value(leaf) for key, leaf in items}) for name, kind, items in tree or ()}
    )


def _kind(record: Any) -> str:
    return next(kind for kind, of in KINDS.items() if isinstance(record, of))


def _leaf(value: Any) -> Tree:
    if isinstance(value, Array):
        return {"dtype": value.dtype, "shape": list(value.shape), "stype": value.stype, "data": _leaf(value.data)}
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    return [_leaf(v) for v in value] if isinstance(value, list) else value


def _value(leaf: Tree) -> Any:
    if isinstance(leaf, dict):
        return Array(leaf["dtype"], tuple(leaf["shape"]), leaf["stype"], leaf["data"].tobytes())
    if isinstance(leaf, np.ndarray):
        return leaf.tobytes()
    return [_value(v) for v in leaf] if isinstance(leaf, list) else leaf
