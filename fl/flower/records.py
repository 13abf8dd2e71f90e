"""Flower's records: typed access, copies, sizes, and conversion to trees for storage."""

from __future__ import annotations

import hashlib
import math
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.communication.wire import wire_bytes
from fl.tensors.trees import Tree

Record = ArrayRecord | MetricRecord | ConfigRecord
RecordSizes = list[tuple[str, int, int, int]]  # (name, payload bytes, encoded bytes, wire bytes)
KINDS: dict[str, type[Record]] = {"array": ArrayRecord, "metric": MetricRecord, "config": ConfigRecord}
R = TypeVar("R", ArrayRecord, MetricRecord, ConfigRecord)


# -- typed access -----------------------------------------------------------------------------------------------------
def _get(content: RecordDict, name: str, kind: type[R]) -> R:
    record = content[name]
    if not isinstance(record, kind):
        raise TypeError(f"record {name!r} is a {type(record).__name__}, not a {kind.__name__}")
    return record


def get_arrays(content: RecordDict, name: str) -> ArrayRecord:
    """Return the ArrayRecord of a name; a TypeError if the record has another kind."""
    return _get(content, name, ArrayRecord)


def get_config(content: RecordDict, name: str) -> ConfigRecord:
    """Return the ConfigRecord of a name; a TypeError if the record has another kind."""
    return _get(content, name, ConfigRecord)


def get_metrics(content: RecordDict, name: str) -> MetricRecord:
    """Return the MetricRecord of a name; a TypeError if the record has another kind."""
    return _get(content, name, MetricRecord)


def get_text(record: ConfigRecord, key: str) -> str:
    """Return a text of a ConfigRecord; a TypeError if the value is not a text."""
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"{key!r} is {value!r}, not a text")
    return value


def numbers(record: MetricRecord) -> dict[str, float]:
    """Return the numbers of a MetricRecord, without its lists."""
    return {key: value for key, value in record.items() if not isinstance(value, list)}


# -- copies and sizes -------------------------------------------------------------------------------------------------
def copy_content(content: RecordDict) -> RecordDict:
    """Copy a RecordDict. The copy shares only the arrays' bytes, which are immutable."""
    return RecordDict({name: _copy(record) for name, record in content.items()})


def _copy(record: Record) -> Record:
    if isinstance(record, ArrayRecord):
        return ArrayRecord({name: Array(a.dtype, tuple(a.shape), a.stype, a.data) for name, a in record.items()})
    values: dict[str, Any] = {key: list(v) if isinstance(v, list) else v for key, v in record.items()}
    return type(record)(values)


def record_sizes(content: RecordDict) -> RecordSizes:
    """Return the bytes of each record: of its raw tensors, as Flower encodes it, and as a part of a message."""
    found: RecordSizes = []
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
    except TypeError:  # the app has its own encoding
        return len(array.data)


def content_digest(content: RecordDict) -> str:
    """Return the SHA-256 of names, kinds and values."""
    found = hashlib.sha256()
    for name, record in content.items():
        found.update(f"{name!r} {_kind(record)}\n".encode())
        for key, value in record.items():
            if isinstance(value, Array):
                found.update(f"{key!r} {value.dtype} {tuple(value.shape)} {value.stype}\n".encode() + value.data)
            else:
                found.update(f"{key!r} {value!r}\n".encode())
    return found.hexdigest()


# -- trees ------------------------------------------------------------------------------------------------------------
def content_to_tree(content: RecordDict) -> Tree:
    """Convert a RecordDict to a tree of text, numbers and byte arrays, which `fl.storage` can write."""
    return [
        [name, _kind(record), [[key, _to_leaf(value)] for key, value in record.items()]]
        for name, record in content.items()
    ]


def tree_to_content(tree: Tree) -> RecordDict:
    """Undo `content_to_tree`; None gives an empty RecordDict."""
    content = RecordDict()
    for name, kind, items in tree or ():
        values: dict[str, Any] = {key: _from_leaf(leaf) for key, leaf in items}
        content[name] = KINDS[kind](values)
    return content


def _kind(record: Record) -> str:
    return next(kind for kind, of in KINDS.items() if isinstance(record, of))


def _to_leaf(value: Any) -> Tree:
    if isinstance(value, Array):
        return {"dtype": value.dtype, "shape": list(value.shape), "stype": value.stype, "data": _to_leaf(value.data)}
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    return [_to_leaf(v) for v in value] if isinstance(value, list) else value


def _from_leaf(leaf: Tree) -> Any:
    if isinstance(leaf, dict):
        return Array(leaf["dtype"], tuple(leaf["shape"]), leaf["stype"], leaf["data"].tobytes())
    if isinstance(leaf, np.ndarray):
        return leaf.tobytes()
    return [_from_leaf(v) for v in leaf] if isinstance(leaf, list) else leaf
