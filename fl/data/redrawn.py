"""Random rows of a user's data set, drawn again whenever training reads them.

    word = hash64(seed, client, participation, phase, epoch, "rows", row)

Before a row is read, the word seeds torch's, NumPy's and Python's global generators, so a row has the same bits on
every executor, alone or in a batch. Evaluation, and everything else that reads a client's data, sees the rows as they
were stored at the start (reading.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fl.data.items import Reader
from fl.data.words import Words
from fl.tensors import random
from fl.tensors.generators import preserved_generators, seed_generators


@dataclass(frozen=True, eq=False)
class RowSource:
    """Reads training rows again.

    Args:
        reader: The user's data set.
        rows: For each training row, its row in the user's data set. Default: the same.
        words: Names of the classes 0, 1, ... if the labels are words.
    """

    reader: Reader
    rows: np.ndarray | None = None
    words: Words | None = None

    def select(self, rows: np.ndarray) -> RowSource:
        """Return the source of some training rows."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    @staticmethod
    def seeded(reader: Reader, row: int, word: int) -> dict[str, np.ndarray]:
        """Read a row with the global generators seeded by a word; they are not restored."""
        seed_generators(word)
        return reader.row(row)

    def draw(self, like: Mapping[str, Tensor], rows: np.ndarray, *address: int | str | np.ndarray) -> dict[str, Tensor]:
        """Read training `rows` (n,), and return tensors on the CPU, with the dtypes and the shapes of a row of `like`.

        Args:
            like: The stored arrays.
            rows: Training rows.
            *address: Integers, or arrays (n,); "rows" and the row are added to it.
        """
        own = rows if self.rows is None else self.rows[rows]
        words = np.broadcast_to(random.hash64(*address, "rows", own), own.shape)
        out = {name: np.empty((len(rows), *array.shape[1:]), _numpy(array)) for name, array in like.items()}
        with preserved_generators(), _plain_torch():
            for i, (row, word) in enumerate(zip(own.tolist(), words.tolist())):
                values = self.seeded(self.reader, row, word)
                for name, array in out.items():
                    array[i] = self._converted(name, values[name], array, row)
        return {name: torch.from_numpy(array) for name, array in out.items()}

    def _converted(self, name: str, value: np.ndarray, array: np.ndarray, row: int) -> np.ndarray:
        """Return a value in its stored form. One number may be stored with or without an axis."""
        shape = array.shape[1:]
        if value.shape != shape and not value.size == 1 == int(np.prod(shape)):
            raise ValueError(
                f"{self.reader.part}: {name} in row {row} has the shape {value.shape}, and before it had {shape}; "
                "pad, crop or resize it"
            )
        if value.dtype.kind not in "biuf":
            value = self._numbered(value, row)
        if array.dtype.kind != "f" and value.dtype.kind == "f" and np.any(value != np.floor(value)):
            raise ValueError(f"{self.reader.part}: {name} in row {row} is {value}, and before it was a whole number")
        return value.reshape(shape)

    def _numbered(self, value: np.ndarray, row: int) -> np.ndarray:
        word = value.item()
        word = word.decode() if isinstance(word, bytes) else word
        if self.words is None or word not in self.words:
            raise ValueError(f"{self.reader.part}: y in row {row} is {word!r}, which is none of the labels read before")
        return np.asarray(self.words.index(word))


def _numpy(tensor: Tensor) -> np.dtype:
    return torch.empty((), dtype=tensor.dtype, device="cpu").numpy().dtype


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Within: a user's transform sees torch's defaults, not the device and the precision of training."""
    with ExitStack() as stack:
        if torch.empty(0).device.type != "cpu":  # a context of the device slows each call into torch
            stack.enter_context(torch.device("cpu"))
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        yield


class RedrawnArrays(dict[str, Tensor]):
    """Arrays by name, whose rows are drawn again in training.

    Args:
        arrays: The stored rows.
        source: Draws rows.
    """

    def __init__(self, arrays: Mapping[str, Tensor], source: RowSource) -> None:
        super().__init__(arrays)
        self.source = source

    def __reduce__(self) -> tuple[type[RedrawnArrays], tuple[dict[str, Tensor], RowSource]]:
        return RedrawnArrays, (dict(self), self.source)
