"""The data folder: the environment variable FL_DATA, or else a folder in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

DATA_FILES = (".npz", ".parquet", ".csv")  # `data: NAME` with one of these endings is the user's own file

# hints for the error about a missing file: which other files can be used, and their sources
HINTS = {
    "mnist": "Also read: the original idx files, compressed (.gz) or not, in mnist/ or MNIST/raw/; "
    "torchvision.datasets.MNIST(FOLDER, download=True) puts them there (without writers)",
    "usps": "Also read: usps/usps.bz2 and usps/usps.t.bz2 "
    "from https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps",
    "cifar10": "Also read: cifar10/cifar-10-batches-bin/ (data_batch_1.bin to data_batch_5.bin, test_batch.bin), "
    "the binary version from https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "Also read: cifar100/cifar-100-binary/ (train.bin, test.bin), the binary version "
    "from https://www.cs.toronto.edu/~kriz/cifar.html",
    "omniglot": "It is made from the drawings at https://github.com/brendenlake/omniglot: arrays x (N, 28, 28) uint8, "
    "alphabet, character, drawer (N,) and evaluation (N,) bool",
    "movielens_latest_small": "It is made from ml-latest-small.zip of https://grouplens.org/datasets/movielens: "
    "arrays user, item (numbered from 0), rating_x2 and timestamp (N,)",
    "sst2": "train.tsv.gz and dev.tsv.gz are GLUE's SST-2 files (https://gluebenchmark.com/tasks), gzip-compressed",
    "ag_news": "test.csv.gz is test.csv of AG News (class, title, description), compressed with gzip",
}


def data_folder() -> Path:
    """Return the data folder."""
    return Path(os.environ.get("FL_DATA") or Path.home() / ".cache" / "fl" / "data")


def find(*parts: str) -> Path:
    """Return the path of a file in the data folder. If it is missing, the `ValueError` names alternatives."""
    path = data_folder().joinpath(*parts)
    if not path.is_file():
        hint = f". {HINTS[parts[0]]}" if parts[0] in HINTS else ""
        raise ValueError(
            f"data: {'/'.join(parts)} is not in {data_folder()}; "
            f"put it there, or set FL_DATA to the folder that has it{hint}"
        )
    return path


def locate(path: str, key: str = "path") -> Path:
    """Return the file at `path`, relative to the current directory or else to the data folder.

    If it is missing, the `ValueError` begins with `key`, the setting that names it.
    """
    found = next((p for p in (Path(path).expanduser(), data_folder() / path) if p.is_file()), None)
    if found is None:
        raise ValueError(f"{key}: {path} is neither in {Path.cwd()} nor in the data folder {data_folder()}")
    return found


def first_with(folders: tuple[str, ...], *files: str) -> dict[str, Path] | None:
    """Return the paths of `files`, compressed (.gz) or not, in the first of the `folders` that has all of them."""
    for folder in folders:
        home = data_folder() / folder
        paths = {f: p for f in files for p in (home / f"{f}.gz", home / f) if p.is_file()}
        if len(paths) == len(files):
            return paths
    return None
