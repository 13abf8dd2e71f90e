"""Vectors in segments, such as updates that wait in a scratch file. They have neither a header nor a checksum."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl.storage import files
from fl.storage.growing import Damaged
from fl.tensors.serialise import raw_bytes


@dataclass(frozen=True)
class Vector:
    """A vector in a segment, readable by any process that sees the folder.

    Args:
        path: File of the segment.
        offset: Position in the file, in bytes.
        length: Size in bytes.
        dtype: Name of the torch dtype.
    """

    path: str
    offset: int
    length: int
    dtype: str

    def open(self) -> Tensor:
        """Map the vector; changes are not written to the file."""
        array = np.memmap(self.path, np.uint8, "c", self.offset, (self.length,))
        return torch.from_numpy(array).view(getattr(torch, self.dtype))

    @property
    def location(self) -> tuple[int, int, int]:
        """Where the vector lies: (segment, offset, length)."""
        return int(Path(self.path).stem), self.offset, self.length

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.length // getattr(torch, self.dtype).itemsize

    def read(self, start: int = 0, stop: int | None = None, file: int | None = None) -> Tensor:
        """Return a copy of the elements from `start` up to `stop`, default all. Nothing of the file stays mapped.

        Args:
            start: first element.
            stop: element after the last one.
            file: descriptor of the segment's file, if it is open; many reads are quicker then.
        """
        if file is None:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                return self.read(start, stop, file)
            finally:
                os.close(file)
        dtype = getattr(torch, self.dtype)
        out = torch.empty((self.numel if stop is None else stop) - start, dtype=dtype, device="cpu")
        if files.read_at(file, raw_bytes(out), self.offset + start * dtype.itemsize) < out.nbytes:
            raise Damaged(f"{self.path} ends before byte {self.offset + self.length}")
        return out
