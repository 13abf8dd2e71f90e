"""Characters as ids 0..79, with LEAF's vocabulary for Shakespeare (Caldas et al. 2018, arXiv:1812.01097).

Other characters are read as spaces.
"""

from __future__ import annotations

import numpy as np

VOCABULARY = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
SPACE = VOCABULARY.index(" ")

_IDS = np.full(129, SPACE, np.int8)  # by code point; code points above 127 share the last entry
_IDS[[ord(char) for char in VOCABULARY]] = np.arange(len(VOCABULARY))


def encode(text: str) -> np.ndarray:
    """Return the ids of a text, int8 (len(text),).

    >>> encode("\\n !").tolist(), decode(encode("a~b"))
    ([0, 1, 2], 'a b')
    """
    return _IDS[np.minimum(np.frombuffer(text.encode("utf-32-le"), np.uint32), 128)]


def decode(ids: np.ndarray) -> str:
    """Return the text of ids (n,)."""
    return "".join(VOCABULARY[i] for i in ids)


def next_windows(ids: np.ndarray, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut windows of `length` characters, `stride` apart: x int8 (n, length), and y int64 (n,), the next character.

    >>> x, y = next_windows(np.arange(5, dtype=np.int8), length=2, stride=2)
    >>> x.tolist(), y.tolist()
    ([[0, 1], [2, 3]], [2, 4])
    """
    if len(ids) <= length:
        return np.empty((0, length), np.int8), np.empty(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::stride]
    return windows[:, :-1], windows[:, -1].astype(np.int64)


def sequence_windows(ids: np.ndarray, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut windows x int8 (n, length), and y int64 (n, length): y[t] follows x[t].

    Behind the end of the text, x holds spaces and y holds -1.

    >>> sequence_windows(np.arange(4, dtype=np.int8), length=2, stride=2)[1].tolist()
    [[1, 2], [3, -1]]
    """
    n = -(-max(len(ids) - 1, 0) // stride)
    long = np.concatenate([ids, np.full(length + 1, -1, np.int8)])
    windows = np.lib.stride_tricks.sliding_window_view(long, length + 1)[::stride][:n]
    x = windows[:, :-1]
    return np.where(x < 0, np.int8(SPACE), x), windows[:, 1:].astype(np.int64)
