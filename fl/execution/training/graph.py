"""The loop's gradient as a CUDA graph: recorded once for each shape of batch, then replayed with a single launch.

    a client's parameters -> fixed memory     batch, masks -> fixed memory -> replay -> losses, gradients (fixed memory)

Shuffles, gathering, hooks, clipping and the optimiser's step cannot be recorded and stay outside.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fl.tensors.params import Layout, Params

WARM_UP = 3  # runs before a recording, in which libraries choose their algorithms and allocate memory

Compute = Callable[[Mapping[str, Tensor], list[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]
_recordings: weakref.WeakKeyDictionary[torch.nn.Module, dict[tuple[Any, ...], Recording]] = weakref.WeakKeyDictionary()


def place(params: Params) -> Params:
    """A copy in memory that all parameters of this layout share."""
    return _place(params.layout, params.device).copy_(params)


@functools.lru_cache(maxsize=4)
def _place(layout: Layout, device: torch.device) -> Params:
    return layout.zeros().to(device)


def recorded(module: torch.nn.Module, compute: Compute) -> Compute:
    """`compute` by recordings. It must depend only on its arguments, the module and fixed memory."""
    known = _recordings.setdefault(module, {})

    def replay(batch: Mapping[str, Tensor], masks: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        shapes = (tuple((name, *array.shape) for name, array in batch.items()), tuple(mask.shape for mask in masks))
        if shapes not in known:
            known[shapes] = Recording(compute, batch, masks)
        return known[shapes](batch, masks)

    return replay


class Recording:
    """One graph, with the memory that it reads and writes."""

    def __init__(self, compute: Compute, batch: Mapping[str, Tensor], masks: list[Tensor]):
        self.batch, self.masks = (
            {name: array.clone() for name, array in batch.items()},
            [mask.clone() for mask in masks],
        )
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP):
                compute(self.batch, self.masks)
        torch.cuda.current_stream().wait_stream(side_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses, self.gradients = compute(self.batch, self.masks)

    def __call__(self, batch: Mapping[str, Tensor], masks: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Replay the graph; the results are overwritten by the next call."""
        for name, array in batch.items():
            self.batch[name].copy_(array)
        for fixed, mask in zip(self.masks, masks):
            fixed.copy_(mask)
        self.graph.replay()
        return self.losses, self.gradients
