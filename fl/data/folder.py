"""Where data sets lie: a folder that FL_DATA names, by default fl's own in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    return Path(os.environ.get("FL_DATA") or Path.home() / ".cache" / "fl" / "data")


def find(*parts: str) -> Path:
    """The file at `parts` below the data folder; a `ValueError` that says where it was looked for if it is not there."""
    path = data_folder().joinpath(*parts)
    if not path.is_file():
        raise ValueError(
            f"data: {'/'.join(parts)} is not in {data_folder()}; put it there, or set FL_DATA to the folder that has it"
        )
    return path
