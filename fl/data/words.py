"""Words as labels and as names of clients: the distinct words are numbered 0, 1, ... in sorted order."""

from __future__ import annotations

import numbers

import numpy as np

Words = tuple[str, ...]


def codes(column: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Number the distinct words of all columns 0, 1, ... in sorted order. Columns of integers are returned unchanged.

    >>> [c.tolist() for c in codes(np.array(["b", "a"]), np.array(["b"]))]
    [[1, 0], [1]]
    """
    columns = [np.asarray(c) for c in (column, *others)]
    return columns if all(c.dtype.kind in "iub" for c in columns) else numbered(columns)[0]


def numbered(columns: list[np.ndarray]) -> tuple[list[np.ndarray], Words]:
    """Return the columns with their words numbered, each of its own shape, and the words in that order.

    >>> columns, words = numbered([np.array(["dog", "cat"]), np.array([["eel"]])])
    >>> [c.tolist() for c in columns], words
    ([[1, 0], [[2]]], ('cat', 'dog', 'eel'))
    """
    words, found = np.unique(np.concatenate([c.astype(str).ravel() for c in columns]), return_inverse=True)
    parts = np.split(found.reshape(-1), np.cumsum([c.size for c in columns])[:-1])
    return [part.reshape(c.shape) for part, c in zip(parts, columns)], tuple(words.tolist())


def plain(name: str, column: np.ndarray) -> np.ndarray:
    """Return Python objects and bytes as an array of words or of numbers. Other arrays are returned unchanged.

    Raises:
        ValueError: an entry is neither a word nor a number, or words and numbers are mixed. It names the first row.
    """
    if column.dtype.kind == "S":
        return np.char.decode(column, "utf-8")
    if column.dtype.kind != "O":
        return column
    kinds = [_kind(value) for value in column.ravel().tolist()]
    for wanted in ("word", "number"):
        if kinds.count(wanted) == len(kinds):
            return np.array(column.tolist())
    first = kinds[0] if kinds[0] is not None else "word"
    wrong = next(i for i, kind in enumerate(kinds) if kind != first)
    others, row = len(kinds) - kinds.count(first), wrong // (column.size // len(column))
    raise ValueError(
        f"data: {name} has {column.ravel()[wrong]!r} in row {row}, which is not a {first} ({others} such entries); "
        "fill in missing values, and use either words or numbers"
    )


def _kind(value: object) -> str | None:
    if isinstance(value, float) and value != value:  # pandas writes a missing word as NaN
        return "number"
    return "word" if isinstance(value, str) else "number" if isinstance(value, numbers.Real) else None
