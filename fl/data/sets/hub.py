"""Data sets of the Hugging Face hub, or saved with its package `datasets`. Needs the extra `fl[hub]`.

    data: {name: hub, path: ylecun/mnist, features: image, target: label}

`path` is a name on the hub, a folder written by save_to_disk(), or a folder with .parquet files named after the parts.
Images become float32 in [0, 1], (1, H, W) or (3, H, W); columns of numbers become one vector. Labels and clients that
are words are numbered in sorted order. Texts need a tokenizer; load them in your own function.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.data.dataset import Dataset, Loader
from fl.data.hugging_face import read_columns
from fl.registry import register


@register("data", "hub")
@dataclass(frozen=True, kw_only=True)
class Hub(Loader):
    """A data set of the Hugging Face hub.

    Args:
        path: Name on the hub, or a folder; see the module.
        features: One column of images, or columns of numbers.
        target: Column of the labels.
        train: Name of the training part.
        test: Name of the server's test part; null for none.
        clients: Column with the owner of each row.
        config: Configuration, for data sets that have several.
        revision: Commit on the hub, for repeatable runs.
    """

    path: str
    features: tuple[str, ...] = ("image",)
    target: str = "label"
    train: str = "train"
    test: str | None = "test"
    clients: str | None = None
    config: str | None = None
    revision: str | None = None

    def load(self) -> Dataset:
        parts = self._parts()
        wanted = {"train": self.train} | ({} if self.test is None else {"test": self.test})
        for key, name in wanted.items():
            if name not in parts:
                raise ValueError(f"{key}: {name!r} is not one of the parts {sorted(parts)} of {self.path}")
        chosen = [parts[name] for name in wanted.values()]
        owned = dict(zip(wanted, (self.clients, None)))
        parts = {
            key: read_columns(part, key, self.features, self.target, owned[key]) for key, part in zip(wanted, chosen)
        }
        clients = parts["train"].pop("clients", None)
        return Dataset(parts["train"], parts.get("test"), clients)

    def _parts(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError:
            raise ValueError("name: hub needs the package datasets; pip install 'datasets>=3'") from None
        folder = Path(self.path).expanduser()
        if folder.is_dir() and ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
            found = datasets.load_from_disk(str(folder))
            return dict(found) if isinstance(found, datasets.DatasetDict) else {self.train: found}
        try:
            return dict(datasets.load_dataset(self.path, self.config, revision=self.revision))
        except (OSError, ValueError) as error:
            raise ValueError(f"path: {self.path} is not a folder, and the hub did not provide it: {error}") from error
