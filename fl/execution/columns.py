"""Numbers by cohort position, collected piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Columns:
    """Named columns over cohort positions: add one row or many, read arrays in position order."""

    def __init__(self) -> None:
        self.pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, positions: np.ndarray, values: Mapping[str, Any]) -> None:
        """Add values at positions (n,): for each name one row per position, or one row for all of them."""
        for name, value in values.items():
            array = np.asarray(value)
            if array.shape[:1] != positions.shape:
                array = np.broadcast_to(array, (len(positions), *array.shape[1:]))
            self.pieces.setdefault(name, []).append((positions, array))

    def extend(self, other: Columns) -> None:
        """Add copies of all pieces of other columns, which may lie in memory that workers write again."""
        places = _each_once(np.copy, other)
        for name, pieces in other.pieces.items():
            self.pieces.setdefault(name, []).extend((places[id(at)], values.copy()) for at, values in pieces)

    def column(self, name: str, n: int, missing: Any) -> np.ndarray:
        """Return the values of positions 0..n-1, (n, ...), and `missing` where there is none."""
        pieces = self.pieces.get(name, [])
        dtype = np.result_type(*(p.dtype for _, p in pieces)) if pieces else type(missing)
        out = np.full((n, *(pieces[0][1].shape[1:] if pieces else ())), missing, dtype)
        for positions, values in pieces:
            out[positions] = values
        return out

    def metrics(self, n: int) -> dict[str, np.ndarray]:
        """Return the columns metric/NAME by NAME, (n,) each, NaN where there is no value."""
        return {name[7:]: self.column(name, n, np.nan) for name in self.pieces if name.startswith("metric/")}

    def reordered(self, order: np.ndarray) -> Columns:
        """Return columns whose position i is position order[i] of these."""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        places, moved = _each_once(place.__getitem__, self), Columns()
        for name, pieces in self.pieces.items():
            moved.pieces[name] = [(places[id(at)], values) for at, values in pieces]
        return moved

    def packed(self) -> Columns:
        """Return the same columns with one piece each, so that they travel as few arrays."""
        packed = Columns()
        for name, pieces in self.pieces.items():
            if len(pieces) > 1:  # a single piece stays: positions that columns share then travel once
                positions, values = zip(*pieces)
                pieces = [(np.concatenate(positions), np.concatenate(values))]
            packed.pieces[name] = pieces
        return packed


def _each_once(fn: Callable[[np.ndarray], np.ndarray], columns: Columns) -> dict[int, np.ndarray]:
    """Return `fn` of each array of positions by its identity. Most columns of a chunk share one array."""
    return {id(at): fn(at) for at in {id(at): at for pieces in columns.pieces.values() for at, _ in pieces}.values()}
