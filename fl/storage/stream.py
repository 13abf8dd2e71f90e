"""Append-only tables: an Arrow IPC stream that is valid however it was cut.

    | schema | batch | batch | batch | ba        one batch per commit; a torn tail is left out when reading

The length after a commit goes into the round's commit; a resumed run cuts the file back to it and goes on. Writes reach the
operating system at once, so that they outlive the process (not a power cut).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa


# pa.array, pa.scalar and pa.repeat import pandas, if there is one, to see whether it is theirs: .3 s before the first commit
def column(values: np.ndarray) -> pa.Array:
    """Numbers (n,) as a column, without a copy if they are contiguous."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def repeated(text: str, count: int) -> pa.Array:
    """One text over and over, as a column."""
    data = text.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(data))
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(data * count))


class ArrowStream:
    """The writing end of `path`, cut to `length` (0: begun anew)."""

    def __init__(self, path: str | Path, schema: pa.Schema, length: int = 0):
        self.schema, self.length = schema, length
        self._file = open(path, "r+b" if length else "wb", buffering=0)
        there = os.fstat(self._file.fileno()).st_size
        if there < length:
            self._file.close()
            raise ValueError(f"{path}: has {there} bytes of {length} committed; restore it or start the run anew")
        self._file.truncate(length)
        self._file.seek(length)
        if not length:
            self._write(schema.serialize())

    def append(self, rows: pa.RecordBatch) -> int:
        """Write rows of the stream's schema; returns the file's length."""
        self._write(rows.serialize())
        return self.length

    def _write(self, buffer: pa.Buffer) -> None:
        view = memoryview(buffer)
        while view:  # an unbuffered write may be partial
            written = self._file.write(view)
            view, self.length = view[written:], self.length + written

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def read(path: str | Path, schema: pa.Schema) -> pa.Table:
        """All whole batches of `path`."""
        batches = []
        with pa.OSFile(str(path)) as file:
            try:
                for batch in pa.ipc.open_stream(file):
                    batches.append(batch)
            except (pa.ArrowInvalid, OSError):  # a torn tail, or not even a schema yet
                pass
        return pa.Table.from_batches(batches, schema)
