"""A picture of images that servers have made: `python -m experiments.target RUN [RUN ...] --plot images.png`.

Each RUN is the folder of a run of `target` that has ended. The picture has the images that the server made after the
last task but one: a row for each old class, as the old model predicts it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from fl.strategies.target import TARGET
from torch import Tensor

from fl.config.config import resolve
from fl.config.reading import read
from fl.config.yaml import parse
from fl.data.image_bytes import from_bytes
from fl.report.plots.style import figure_style, save
from fl.storage.run import last_commit

COLUMNS = 12


def pool(run: Path) -> tuple[Tensor, np.ndarray, int]:
    """Return images uint8 (n, channels, height, width), the old model's predictions (n,), number of old classes."""
    state, config = last_commit(run)["state"], resolve(read(parse((run / "config.yaml").read_text())))
    images, model = state["images"], state["teacher"]
    assert isinstance(config.strategy, TARGET) and config.stream is not None
    outputs = model[[name for name in model if name.endswith("bias")][-1]].numel()
    module = config.model.part.build(tuple(images.shape[1:]), outputs).eval()
    with torch.no_grad():
        found = torch.func.functional_call(module, dict(model), (from_bytes(images, *config.strategy.pixels),))
    classes = outputs - outputs // config.stream.tasks
    return images, found[:, :classes].argmax(1).numpy(), classes


def sheet(images: Tensor, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return one picture, with a row for each class and its first images in columns; white where there are none."""
    _, _, height, width = images.shape
    picture = np.full((classes * (height + 1), COLUMNS * (width + 1)), 255, np.uint8)
    for c in range(classes):
        for column, i in enumerate(np.flatnonzero(labels == c)[:COLUMNS]):
            top, left = c * (height + 1), column * (width + 1)
            picture[top : top + height, left : left + width] = images[i].float().mean(0).round().byte().numpy()
    return picture


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--plot", type=Path, default=Path("images.png"), help="the picture")
    options = parser.parse_args()
    found = [pool(run) for run in options.runs]
    with figure_style(grid=False):
        figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.4), layout="constrained", squeeze=False)
        for place, (images, labels, classes) in zip(axes[0], found):
            place.imshow(sheet(images, labels, classes), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            place.set_yticks((np.arange(classes) + 0.5) * (images.shape[2] + 1), [str(c) for c in range(classes)])
            place.set(xticks=[], title=f"{len(images)} images of {images.shape[2]} x {images.shape[3]}", ylabel="class")
        save(figure, options.plot)


if __name__ == "__main__":
    main()
