"""Data sets of the package `datasets` (Hugging Face): columns as x, y and clients, by their features.

Images become float32 in [0, 1], (C, H, W), in a mapped file; columns of numbers become one vector; a column of lists
keeps its shape, and integers if it has them. Labels that are words are numbered later.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl.data.columns import column, features, labels
from fl.data.dataset import Arrays
from fl.data.images import from_pil
from fl.data.items import Kind, choose
from fl.data.temporary import temporary_array

BLOCK = 1024  # rows that are decoded at once


def is_hugging_face(value: Any) -> bool:
    """Return whether a value is a map-style data set of the package `datasets`."""
    found = getattr(sys.modules.get("datasets"), "Dataset", None)
    return isinstance(found, type) and isinstance(value, found) and hasattr(value, "select_columns")


def is_transformed(dataset: Any) -> bool:
    """Return whether rows pass through a function of the user at each access (`with_transform`)."""
    return dataset.format["type"] == "custom"


def kinds(dataset: Any) -> dict[str, Kind]:
    """Return the kind of each column that the data set shows."""
    return {name: _kind(dataset.features[name]) for name in dataset.format["columns"]}


def _kind(feature: Any) -> Kind:
    import datasets

    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.Value):
        dtype = str(feature.dtype)
        return (
            "text" if "string" in dtype else "number" if dtype.startswith(("int", "uint", "float", "bool")) else "other"
        )
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    if isinstance(feature, (datasets.Array2D, datasets.Array3D, datasets.Array4D, datasets.Array5D)):
        return "array"
    return "array" if inner is not None and _kind(inner) in ("number", "class", "array") else "other"


def read_columns(
    dataset: Any, part: str, names: Sequence[str] = (), target: str | None = None, clients: str | None = None
) -> Arrays:
    """Read x, y and the clients of a data set without a transform.

    Args:
        dataset: The data set.
        part: Its name in error messages.
        names: Columns of x. Default: chosen by their features.
        target: Column of y. Default: likewise.
        clients: Column with the owner of each row.
    """
    known = kinds(dataset)
    if clients is not None and clients not in known:
        raise ValueError(f"clients: {clients!r} is not one of the columns {list(known)}")
    try:
        x, y = choose({name: kind for name, kind in known.items() if name != clients}, names, target)
    except ValueError as error:
        raise ValueError(str(error) if names or target else f"{part}: {error}") from None
    plain = dataset.with_format(None)
    arrays = {"x": read_features(plain, x)}
    if y is not None:
        arrays["y"] = labels(table(plain, (y,), "target"), y)
    if clients is not None:
        arrays["clients"] = column(table(plain, (clients,), "clients"), "clients", clients)
    return arrays


def read_features(dataset: Any, names: Sequence[str]) -> np.ndarray:
    """Read one column of images or of arrays, or join columns of numbers."""
    known = {name: _kind(dataset.features[name]) for name in names if name in dataset.features}
    if "image" in known.values():
        if len(names) > 1:
            raise ValueError(f"features: {list(names)}; images must come from a single column")
        return _images(dataset, names[0])
    if len(names) == 1 and known.get(names[0]) == "array":
        return _block(dataset, names[0])
    return features(table(dataset, tuple(names), "features"), list(names))


def _images(dataset: Any, name: str) -> np.ndarray:
    """Decode images one after another into a mapped file."""
    found, row = np.zeros(0, np.float32), 0
    for start in range(0, len(dataset), BLOCK):
        for image in dataset[start : start + BLOCK][name]:
            if image is None:
                raise ValueError(f"features: column {name!r} has no image in row {row}; leave the row out")
            try:
                pixels = from_pil(image)
            except ValueError as error:
                raise ValueError(f"features: column {name!r}, row {row}: {error}") from None
            if not row:
                found = temporary_array((len(dataset), *pixels.shape), pixels.dtype)
            if pixels.shape != found.shape[1:]:
                raise ValueError(
                    f"features: the image in row {row} has the shape {pixels.shape}, and in row 0 {found.shape[1:]}; "
                    "resize the images with map()"
                )
            found[row] = pixels
            row += 1
    found.flags.writeable = False
    return found


def _block(dataset: Any, name: str) -> np.ndarray:
    """Read a column of lists or arrays into a mapped file: float32, or integers."""
    arrays, found = dataset.select_columns([name]).with_format("numpy"), np.zeros(0, np.float32)
    for start in range(0, len(dataset), BLOCK):
        block = arrays[start : start + BLOCK][name]
        if isinstance(block, list) or block.dtype.kind not in "biuf":
            lengths = sorted({np.shape(row) for row in block})
            raise ValueError(
                f"features: the lists of column {name!r} differ in length, {lengths[:4]}; pad them"
                if len(lengths) > 1 and () not in lengths
                else f"features: column {name!r} has missing values; fill them, or leave the rows out"
            )
        if not start:
            dtype = np.dtype(np.float32) if block.dtype.kind == "f" else block.dtype
            found = temporary_array((len(dataset), *block.shape[1:]), dtype)
        if block.shape[1:] != found.shape[1:]:
            raise ValueError(
                f"features: the lists of column {name!r} differ in length, {found.shape[1:]} in row 0 and "
                f"{block.shape[1:]} in rows from {start}; pad them"
            )
        found[start : start + BLOCK] = block
    found.flags.writeable = False
    return found


def table(dataset: Any, names: tuple[str, ...], key: str) -> Any:
    """Return columns as a pyarrow table. `key` is the setting that names them, for error messages."""
    for name in names:
        if name not in dataset.column_names:
            raise ValueError(f"{key}: {name!r} is not one of the columns {dataset.column_names}")
    return dataset.select_columns(list(names)).with_format("arrow")[:]
