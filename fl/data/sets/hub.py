"""Data sets of the Hugging Face hub, or saved by its package `datasets`. Needs the extra `fl[hub]`.

    data: {name: hub, path: ylecun/mnist, features: image, target: label}

`path` is a name on the hub, a folder that save_to_disk() wrote, or a folder with .parquet files named after the parts.
Images become float32 in [0, 1], (1, H, W) or (3, H, W); columns of numbers become one vector. Labels and clients that are words are
numbered by sorting. Texts need a tokenizer: load those in a function of your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.data.dataset import Dataset
from fl.data.images import unit
from fl.data.sets.file import codes, column, features
from fl.registry import register


@register("data", "hub")
@dataclass(frozen=True, kw_only=True)
class Hub:
    """`features`: one column of images, or columns of numbers. `train`, `test`: the names of the parts (`test: null` for none).
    `clients`: the column that says whose a row is. `config`: of data sets that have several. `revision`: a commit, to be repeatable."""

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
        targets = [column(_table(part, (self.target,), "target"), "target", self.target) for part in chosen]
        if any(t.dtype.kind != "f" for t in targets):
            targets = codes(*targets)
        arrays = [{"x": self._inputs(part), "y": y} for part, y in zip(chosen, targets)]
        owners = None
        if self.clients is not None:
            owners = codes(column(_table(chosen[0], (self.clients,), "clients"), "clients", self.clients))[0]
        return Dataset(*arrays, clients=owners)

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
            raise ValueError(f"path: {self.path} is no folder, and the hub has not given it: {error}") from error

    def _inputs(self, part: Any) -> np.ndarray:
        import datasets

        kinds = {name: part.features.get(name) for name in self.features}
        if not any(isinstance(kind, datasets.Image) for kind in kinds.values()):
            return features(_table(part, self.features, "features"), list(self.features))
        if len(kinds) > 1:
            raise ValueError(f"features: {list(kinds)}; images are taken from one column alone")
        images = [np.asarray(image) for image in part[self.features[0]]]
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            raise ValueError(
                f"features: images of {len(shapes)} shapes, {shapes[:3]} ...; resize them in a function of your own"
            )
        if images[0].dtype != np.uint8:
            raise ValueError(
                f"features: images of {images[0].dtype}, not of 8 bits; scale them in a function of your own"
            )
        pixels = np.stack(images)
        return unit(pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))


def _table(part: Any, names: tuple[str, ...], key: str) -> Any:
    """The columns as a pyarrow table."""
    for name in names:
        if name not in part.column_names:
            raise ValueError(f"{key}: {name!r} is not one of the columns {part.column_names}")
    return part.select_columns(list(names)).with_format("arrow")[:]
