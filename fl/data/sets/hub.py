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

import numpy as np

from fl.data.dataset import Dataset, Loader
from fl.data.images import unit
from fl.data.sets.file import column, features, labels
from fl.data.words import codes
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
        targets = [labels(_table(part, (self.target,), "target"), self.target) for part in chosen]
        arrays = [{"x": self._inputs(part), "y": y} for part, y in zip(chosen, targets)]
        owners = None
        if self.clients is not None:
            owners = codes(column(_table(chosen[0], (self.clients,), "clients"), "clients", self.clients))[0]
        return Dataset(arrays[0], arrays[1] if len(arrays) > 1 else None, owners)

    def _parts(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError:
            raise ValueError("name: hub needs the package datasets; pip install 'fl[hub]'") from None
        folder = Path(self.path).expanduser()
        if folder.is_dir() and ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
            found = datasets.load_from_disk(str(folder))
            return dict(found) if isinstance(found, datasets.DatasetDict) else {self.train: found}
        try:
            return dict(datasets.load_dataset(self.path, self.config, revision=self.revision))
        except (OSError, ValueError) as error:
            raise ValueError(f"path: {self.path} is not a folder, and the hub did not provide it: {error}") from error

    def _inputs(self, part: Any) -> np.ndarray:
        import datasets

        kinds = {name: part.features.get(name) for name in self.features}
        if not any(isinstance(kind, datasets.Image) for kind in kinds.values()):
            return features(_table(part, self.features, "features"), list(self.features))
        if len(kinds) > 1:
            raise ValueError(f"features: {list(kinds)}; images must come from a single column")
        images = [np.asarray(image) for image in part[self.features[0]]]
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            raise ValueError(
                f"features: images of {len(shapes)} shapes, {shapes[:3]} ...; resize them in your own function"
            )
        if images[0].dtype != np.uint8:
            raise ValueError(
                f"features: images of {images[0].dtype} instead of 8 bits; scale them in your own function"
            )
        pixels = np.stack(images)
        return unit(pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))


def _table(part: Any, names: tuple[str, ...], key: str) -> Any:
    """Return the columns as a pyarrow table."""
    for name in names:
        if name not in part.column_names:
            raise ValueError(f"{key}: {name!r} is not one of the columns {part.column_names}")
    return part.select_columns(list(names)).with_format("arrow")[:]
