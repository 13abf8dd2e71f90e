"""Facts of a client's data, such as class counts: what the hook `LocalTraining.facts` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl.data.views import View
from fl.tensors.params import Params
from fl.tensors.trees import Tree, named_leaves

if TYPE_CHECKING:
    from fl.method.local_training import LocalTraining
    from fl.tasks.task import Task


def data_facts(algorithm: LocalTraining, view: View, task: Task, outputs: int) -> Tree:
    """Return `algorithm.facts`; ValueError if they hold something else than tensors."""
    return only_tensors(algorithm.facts(view, task, outputs), "facts", algorithm)


def only_tensors(found: Tree, hook: str, algorithm: LocalTraining) -> Tree:
    """Return what a hook returned for one client; ValueError if it holds something else than tensors.

    Clients that train together share the other values of a tree, so that all would get those of the first client.
    """
    for path, leaf in () if found is None else named_leaves(found, hook):
        if not isinstance(leaf, (Tensor, Params)):
            name = type(algorithm).__name__
            raise ValueError(
                f"{path} of {name} is a {type(leaf).__name__}; what {hook} returns holds tensors only, as in "
                "torch.tensor(value)"
            )
    return found


def class_counts(view: View, classes: int) -> Tensor:
    """Return the number of samples of each class 0, ..., classes - 1 in a view, int64 (classes,).

    >>> import numpy as np
    >>> class_counts(View({"y": torch.tensor([0, 2, 2])}, np.arange(3)), 4).tolist()
    [1, 0, 2, 0]
    """
    y = view.arrays["y"]
    if y.is_floating_point() or y.ndim != 1:
        raise ValueError(
            f"class counts need one class per sample, y is {tuple(y.shape)} of {y.dtype}; use task: classification"
        )
    return y[torch.as_tensor(view.rows, device=y.device)].bincount(minlength=classes)
