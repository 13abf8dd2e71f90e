"""Images that a strategy has kept in its state, such as those of a generator.

An image tensor has bytes, (n, height, width) or (n, channels, height, width) with 1 or 3 channels; or it has numbers,
four dimensions, and "image" or "synthetic" in its name.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fl.report.charts import Pictures
from fl.report.page.runs import Runs
from fl.report.page.section import Section
from fl.report.page.states import leaves, strategy_state

MOST_IMAGES = 48
SMALLEST, LARGEST = 4, 256  # height and width in pixels
NAMES = ("image", "synthetic")


def images(runs: Runs) -> Section | None:
    """For each variant the first images in the state of its first run."""
    charts = []
    for name, directory in runs.first_of_each():
        for path, found in leaves(strategy_state(directory)):
            tensor = torch.as_tensor(found)
            if not is_images(path, tensor):
                continue
            few = tensor[:MOST_IMAGES]
            note = f"{len(few)} of {len(tensor)} in the state of {directory.name}."
            numbers = [str(i) for i in range(len(few))]
            charts.append(Pictures(title=f"{path}: {name}", note=note, images=as_pixels(few), names=numbers))
    return Section("Generated images", charts) if charts else None


def is_images(path: str, tensor: Tensor) -> bool:
    """Whether a tensor holds images.

    >>> is_images("x", torch.zeros(5, 28, 28, dtype=torch.uint8)), is_images("x", torch.zeros(5, 1, 28, 28))
    (True, False)
    """
    if tensor.ndim not in (3, 4) or not len(tensor) or (tensor.ndim == 4 and tensor.shape[1] not in (1, 3)):
        return False
    sized = all(SMALLEST <= side <= LARGEST for side in tensor.shape[-2:])
    named = tensor.is_floating_point() and tensor.ndim == 4 and any(name in path.lower() for name in NAMES)
    return sized and (tensor.dtype == torch.uint8 or named)


def as_pixels(tensor: Tensor) -> np.ndarray:
    """Images as bytes, (n, height, width) or (n, height, width, 3); numbers are scaled to their range.

    >>> as_pixels(torch.tensor([[[[0.0, 2.0], [1.0, 2.0]]]])).tolist()
    [[[0, 255], [127, 255]]]
    """
    if tensor.dtype != torch.uint8:
        numbers = tensor.float()
        low, high = numbers.min(), numbers.max()
        tensor = ((numbers - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)
    if tensor.ndim == 4:
        tensor = tensor[:, 0] if tensor.shape[1] == 1 else tensor.permute(0, 2, 3, 1)
    return tensor.contiguous().numpy()
