"""Columns of a pyarrow table as features, labels and other arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def features(table: Any, names: list[str]) -> np.ndarray:
    """Join columns of a pyarrow table to float32 (N, d). They hold numbers, or lists of numbers of one length."""
    import pyarrow as pa

    blocks = []
    for name in names:
        column = table[name].combine_chunks()
        if (
            pa.types.is_fixed_size_list(column.type)
            or pa.types.is_list(column.type)
            or pa.types.is_large_list(column.type)
        ):
            values, lengths = column.flatten(), {len(row) for row in column if row.is_valid}
            if len(lengths) > 1 or column.null_count:
                raise ValueError(
                    f"features: the lists of column {name!r} differ in length, {sorted(lengths)}; pad them"
                )
        else:
            values = column
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ):
            raise ValueError(
                f"features: column {name!r} is {values.type}, not numbers; "
                "convert it to numbers, or list the columns to use"
            )
        if values.null_count:
            raise ValueError(
                f"features: column {name!r} has {values.null_count} missing values; fill them, or leave the column out"
            )
        block = values.to_numpy(zero_copy_only=False).astype(np.float32)
        blocks.append(block.reshape(len(table), -1))
    return np.concatenate(blocks, axis=1)


def column(table: Any, key: str, name: str) -> np.ndarray:
    """Return one column of a pyarrow table. Missing values are a `ValueError` that begins with `key`."""
    if name not in table.column_names:
        raise ValueError(f"{key}: {name!r} is not one of the columns {table.column_names}")
    if table[name].null_count:
        raise ValueError(f"{key}: column {name!r} has {table[name].null_count} missing values")
    return table[name].to_numpy()


def identifiers(table: Any, key: str, name: str) -> np.ndarray:
    """Return one column of numbers or words. Missing values and other types are a `ValueError` with `key`."""
    values = column(table, key, name)
    if len(values) and values.dtype.kind not in "biuf" and not isinstance(values[0], str):
        raise ValueError(f"{key}: column {name!r} is {table[name].type}, not words or numbers; convert it")
    return values


def labels(table: Any, name: str) -> np.ndarray:
    """Return the column of labels: numbers, lists of numbers of one length as (N, K), or words."""
    values = column(table, "target", name)
    if values.dtype.kind in "biuf" or not len(values):
        return values
    if not isinstance(values[0], np.ndarray):
        return values.astype(str)
    lengths = sorted({len(row) for row in values})
    if len(lengths) > 1:
        raise ValueError(f"target: the lists of column {name!r} differ in length, {lengths}; pad them")
    return np.stack(list(values))
