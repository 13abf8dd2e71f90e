"""A data set larger than memory, in a folder of memory-mapped .npy files: `data: {name: mapped, path: FOLDER}`.

x.npy, y.npy [clients.npy]    or x_train.npy, y_train.npy [x_test.npy, y_test.npy] [clients.npy]; first axis: the sample

Workers map the same files, and a batch reads its own rows only. Settings that change rows (normalise, long_tail,
shifts) copy them into memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl.data.dataset import Dataset, Loader
from fl.data.folder import data_folder
from fl.data.sets.file import from_arrays
from fl.registry import register

FILES = "x.npy, y.npy [clients.npy], or x_train.npy, y_train.npy [x_test.npy, y_test.npy] [clients.npy]"


@register("data", "mapped")
@dataclass(frozen=True, kw_only=True)
class Mapped(Loader):
    """Memory-mapped features, float32 or integers; labels and clients are read into memory.

    Args:
        path: The folder, relative to the current directory or to the data folder.
    """

    path: str

    def load(self) -> Dataset:
        places = (Path(self.path).expanduser(), data_folder() / self.path)
        folder = next((place.resolve() for place in places if place.is_dir()), None)
        if folder is None:
            raise ValueError(
                f"path: {self.path} is not a folder, in {Path.cwd()} or in the data folder {data_folder()}"
            )
        arrays = {file.stem: _opened(file) for file in sorted(folder.glob("*.npy"))}
        return from_arrays(arrays, f"the folder {folder}", FILES)


def _opened(file: Path) -> np.ndarray:
    """Map the features; read everything else."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"path: {file} is not an array of numbers ({error})") from None
    if not file.stem.startswith("x"):
        return np.array(array)
    if (array.dtype != np.float32 and array.dtype.kind not in "iub") or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " in Fortran order"
        raise ValueError(
            f"path: {file} is {array.dtype}{order}; mapped features are not converted: save them as float32 in C order"
        )
    return array
