"""Append-only tables: an Arrow IPC stream that can be read even if its end is cut off.

    | schema | batch | batch | batch | ba        one batch per commit; readers ignore an incomplete batch

The commit record of a round holds the mark of the file (growing.py); a resumed run cuts the file back and continues.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from fl.storage.growing import GrowingFile, Mark


# pa.array, pa.scalar and pa.repeat import pandas if it is installed, which takes 0.3 s before the first commit
def column(values: np.ndarray) -> pa.Array:
    """Return numbers (n,) as a column, without a copy if they are contiguous."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def repeated(text: str, count: int) -> pa.Array:
    """Return a column with the same text `count` times.

    >>> repeated("val", 2).to_pylist()
    ['val', 'val']
    """
    data = text.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(data))
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(data * count))


class ArrowStream:
    """Writer of a stream.

    Args:
        path: The file.
        schema: Schema of all batches.
        mark: Continue after this mark, see `GrowingFile`; None starts a new file.
    """

    def __init__(self, path: str | Path, schema: pa.Schema, mark: Mark | None = None):
        self.schema, self._file = schema, GrowingFile(Path(path), mark)
        if mark is None:
            self._file.append(memoryview(schema.serialize()))

    @property
    def mark(self) -> Mark:
        """What the file holds now."""
        return self._file.mark

    def append(self, rows: pa.RecordBatch) -> Mark:
        """Write rows with the schema of the stream; return what the file then holds."""
        self._file.append(memoryview(rows.serialize()))
        return self.mark

    def cut(self) -> None:
        """Cut off what the file holds after its mark."""
        self._file.cut()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def read(path: str | Path, schema: pa.Schema) -> pa.Table:
        """Return all complete batches of `path`."""
        batches = []
        with pa.OSFile(str(path)) as file:
            try:
                for batch in pa.ipc.open_stream(file):
                    batches.append(batch)
            except (pa.ArrowInvalid, OSError):  # an incomplete batch, or no schema yet
                pass
        return pa.Table.from_batches(batches, schema)
