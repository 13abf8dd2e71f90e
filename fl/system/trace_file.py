"""Trace files: read them, and assign their entries to clients."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fl.data.folder import locate


def entry_of_client(entries: int, clients: int, path: str, repeat: bool) -> np.ndarray:
    """Return the index (clients,) of each client's entry in a trace of `entries`. `repeat` allows more clients.

    >>> entry_of_client(3, 5, "trace.csv", repeat=True).tolist()
    [0, 1, 2, 0, 1]
    """
    if clients > entries and not repeat:
        raise ValueError(
            f"path: {path} has {entries} entries for {clients} clients; repeat: true starts again from the first entry"
        )
    return np.arange(clients) % entries


def read_json(path: str) -> Any:
    """Return the content of a .json file. An object with a repeated key is a `ValueError`."""

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"path: {path}: {next(n for n in names if names.count(n) > 1)!r} occurs twice")
        return found

    def whole_number(digits: str) -> int:
        if math.isinf(float(digits)):
            raise ValueError(f"path: {path}: {digits[:20]}... is too large, it has {len(digits)} digits")
        return int(digits)

    try:
        text = locate(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {path} is not UTF-8 text: {error}") from None
    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_int=whole_number)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"path: {path} is not JSON: {error}") from None


def sorted_by_id(entries: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    """Return (id, entry) in ascending order of the ids, which must be whole numbers.

    >>> sorted_by_id({"10": "b", "9": "a"}, "trace.json")
    [('9', 'a'), ('10', 'b')]
    """
    if not entries:
        raise ValueError(f"path: {path}: there are no clients in it")
    wrong = next((key for key in entries if not key.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"path: {path}: {wrong!r} is not a client id, a whole number from 0")
    return sorted(entries.items(), key=lambda item: int(item[0]))
