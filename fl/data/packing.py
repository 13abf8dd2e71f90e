"""Tokenised instructions as rows of one length: one text in a row ("padded"), or several ("packed").

    text  t_0 .. t_n, the last ones are the answer        x = t_0 .. t_{n-1},   y_i = t_{i+1} or -100

y is -100 where the next token belongs to the prompt, and at padding, so the answer alone is learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = -100  # y where nothing is learnt
PADDING = -1  # x of a padded row after its text


@dataclass(frozen=True)
class Text:
    """The tokens of a prompt and of its answer."""

    prompt: Sequence[int]
    answer: Sequence[int]

    def cut(self, length: int) -> Text | None:
        """Return the text with at most `length` + 1 tokens, cut at its end; None if no token of the answer is left."""
        room = length + 1 - len(self.prompt)
        return Text(self.prompt, self.answer[:room]) if room > 0 else None

    def __len__(self) -> int:
        """Number of positions that the text takes in a row."""
        return len(self.prompt) + len(self.answer) - 1

    def write(self, x: np.ndarray, y: np.ndarray) -> None:
        """Write x (n,) and y (n,), n being the text's length."""
        tokens = np.array([*self.prompt, *self.answer])
        x[:], y[:] = tokens[:-1], tokens[1:]
        y[: len(self.prompt) - 1] = IGNORED


def padded(texts: Sequence[Text], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (N, length) int32, -1 after each text, and y (N, length) int64.

    >>> [a.tolist() for a in padded([Text([7, 8], [9, 2])], 4)]
    [[[7, 8, 9, -1]], [[-100, 9, 2, -100]]]
    """
    x = np.full((len(texts), length), PADDING, np.int32)
    y = np.full((len(texts), length), IGNORED, np.int64)
    for row, text in enumerate(texts):
        text.write(x[row, : len(text)], y[row, : len(text)])
    return x, y


def rows_of(lengths: Iterable[int], room: int) -> list[list[int]]:
    """Put texts into rows of `room` positions, in their order; a text that does not fit begins a new row.

    >>> rows_of([3, 2, 4], 6)
    [[0, 1], [2]]
    """
    rows: list[list[int]] = []
    left = 0
    for i, length in enumerate(lengths):
        if not rows or length > left:
            rows.append([])
            left = room
        rows[-1].append(i)
        left -= length
    return rows


def packed(rows: Sequence[Sequence[Text]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (N, length, 2) int32, the ids and the number of the text in its row, 0 at padding; and y (N, length).

    >>> x, y = packed([[Text([7], [9]), Text([8], [9, 2])]], 4)
    >>> x[0].T.tolist(), y.tolist()
    ([[7, 8, 9, 0], [1, 2, 2, 0]], [[9, 9, 2, -100]])
    """
    x = np.zeros((len(rows), length, 2), np.int32)
    y = np.full((len(rows), length), IGNORED, np.int64)
    for row, texts in enumerate(rows):
        start = 0
        for number, text in enumerate(texts, start=1):
            end = start + len(text)
            text.write(x[row, start:end, 0], y[row, start:end])
            x[row, start:end, 1] = number
            start = end
    return x, y
