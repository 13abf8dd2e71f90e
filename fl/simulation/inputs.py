"""Fit the features to the model: whole numbers for a model of real numbers, ids for a vocabulary.

Decided by what is known without running the model: the dtype and shape of `x`, the first layer with parameters, and
the `vocabulary` of the model's configuration.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from torch import nn

from fl.data.dataset import Dataset
from fl.data.temporary import converted, is_temporary

log = logging.getLogger(__name__)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fitted(dataset: Dataset, module: nn.Module, vocabulary: int | None) -> Dataset:
    """Return the data set with features that the module takes: whole numbers become float32 for a layer of numbers.

    Args:
        dataset: The data.
        module: The model; its first layer with parameters decides if it is linear or a convolution and fits `x`.
        vocabulary: Number of ids that the model knows, if it has a vocabulary.

    Raises:
        ValueError: an id is beyond the vocabulary, or mapped features would have to be converted.
    """
    if vocabulary is not None:
        for part, arrays in dataset.parts().items():
            require_ids(arrays["x"], part, vocabulary)
        return dataset
    x = dataset.train["x"]
    if x.dtype.kind == "f" or not takes_numbers(module, x.shape[1:]):
        return dataset
    if x.ndim == 1:
        raise ValueError(f"x {x.dtype} {x.shape} is one number per row, and the model takes vectors; make it (rows, 1)")
    maps = [arrays["x"] for arrays in dataset.parts().values() if isinstance(arrays["x"], np.memmap)]
    if not all(map(is_temporary, maps)):
        raise ValueError(
            f"x is {x.dtype}, and the model takes float32; mapped features are not converted: save float32"
        )
    log.warning("data: x is %s; it is converted to float32 for this model, without scaling", x.dtype)
    return dataset.mapped(lambda part, arrays: arrays | {"x": converted(arrays["x"], np.float32)})


def require_ids(x: np.ndarray, where: str, vocabulary: int) -> None:
    """Require ids in 0..vocabulary-1.

    >>> require_ids(np.array([[0, 7], [9, 1]]), "test", 8)
    Traceback (most recent call last):
    ValueError: test x has the id 9 in row 1, and the model knows the ids 0 to 7; set a larger model.vocabulary
    """
    low, high = x.min(), x.max()
    if 0 <= low and high < vocabulary:
        return
    value, hint = (low, "ids start at 0") if low < 0 else (high, "set a larger model.vocabulary")
    row = int(np.argmax(x == value)) // (x.size // len(x))
    raise ValueError(
        f"{where} x has the id {value} in row {row}, and the model knows the ids 0 to {vocabulary - 1}; {hint}"
    )


def takes_numbers(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether the first layer with parameters is linear or a convolution of the size of a sample.

    >>> takes_numbers(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (2, 3)), takes_numbers(nn.Embedding(5, 2), (3,))
    (True, False)
    """
    first = next((m for m in module.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if isinstance(first, nn.Linear):
        return first.in_features in (math.prod(shape), *shape[-1:])
    return isinstance(first, CONVOLUTIONS) and bool(shape) and first.in_channels == shape[0]
