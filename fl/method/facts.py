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
    facts = algorithm.facts(view, task, outputs)
    if facts is None:
        return None
    for path, leaf in named_leaves(facts, "facts"):
        if not isinstance(leaf, (Tensor, Params)):
            name = type(algorithm).__name__
            raise ValueError(f"{path} of {name} is a {type(leaf).__name__}; facts of a client's data hold tensors only")
    return facts


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
