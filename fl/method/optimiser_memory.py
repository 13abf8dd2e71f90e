"""The memory of clients' optimisers across rounds: velocities, moments and numbers of steps.

reset      each local training starts with an empty memory
kept       a client keeps its memory as state; no bytes
averaged   clients send their memory as the group "optimiser"; the server averages it and sends the mean down

    {phase: {"memory": what `Optimiser.state` returned, "steps": number of steps in it, int64 ()}}

Both follow OpenFL (Reina et al. 2021, arXiv:2105.06413), which calls them CONTINUE_LOCAL and CONTINUE_GLOBAL. Learning
rates by step (`lr.by: step`) still count from 0 in each local training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from fl.method.reduction import Meta, Reduction, WeightedMean
from fl.tensors.params import Params
from fl.tensors.trees import Tree, leaves, named_leaves, tree_map

if TYPE_CHECKING:
    from fl.execution.training.steps import Descent
    from fl.method.local_training import LocalTraining

OptimiserState: TypeAlias = Literal["reset", "kept", "averaged"]
GROUP = "optimiser"  # of broadcasts and updates


def require_memory(algorithm: LocalTraining) -> None:
    """Check that the optimiser of a client algorithm has a memory that can be stored and sent.

    Raises:
        ValueError: it has none.
    """
    asked, memory = algorithm.optimiser_state, algorithm.optimiser.state(Params.of({"w": torch.zeros(1)}))
    rule = type(algorithm.optimiser).__name__
    if not memory:
        raise ValueError(
            f"optimiser_state: {asked!r} is not possible: {rule} with these arguments has no memory, such as a "
            "velocity; set optimiser.momentum, use another optimiser, or 'reset'"
        )
    if any(not isinstance(leaf, (Params, torch.Tensor)) for _, leaf in named_leaves(memory)) or not leaves(memory):
        raise ValueError(
            f"optimiser_state: {asked!r} is not possible: the memory of {rule} holds other values than tensors; use "
            "sgd, adam, or 'reset'"
        )


class OptimiserMemory:
    """The memory of one client's optimisers in one local training.

    Args:
        previous: the memory before, by phase; None if there is none.

    Attributes:
        now: the memory after the phases so far.
    """

    def __init__(self, previous: Mapping[str, Tree] | None) -> None:
        self.previous = previous or {}
        self.now: dict[str, Tree] = {}

    def restore(self, phase: int, descent: Descent) -> None:
        """Give the steps of a phase the memory before. If its tensors are others than then, it stays empty."""
        old = self.previous.get(str(phase))
        if old is None or _layouts(old["memory"]) != _layouts(descent.memory):
            return
        for into, source in zip(leaves(descent.memory), leaves(old["memory"])):
            into.copy_(source)
        descent.steps_before = int(old["steps"])

    def save(self, phase: int, descent: Descent) -> None:
        """Take over the memory at the end of a phase."""
        self.now[str(phase)] = {
            "memory": descent.memory,
            "steps": torch.tensor(descent.steps_before + descent.t, dtype=torch.int64),
        }


def _layouts(memory: Tree) -> list[Any]:
    return [(name, leaf.layout if isinstance(leaf, Params) else leaf.shape) for name, leaf in named_leaves(memory)]


@dataclass(frozen=True)
class MemoryMean(WeightedMean):
    """The weighted mean of memories. Numbers of steps are rounded to the nearest integer.

    >>> mean = MemoryMean()
    >>> one, two = ({"steps": torch.tensor(steps), "memory": torch.tensor([float(steps)])} for steps in (2, 5))
    >>> accs = mean.lift(one, Meta(client=0, num_examples=1)), mean.lift(two, Meta(client=1, num_examples=2))
    >>> mean.finish(mean.merge(*accs))
    {'steps': tensor(4), 'memory': tensor([4.])}
    """

    def lift(self, value: Tree, meta: Meta) -> tuple[Tree, torch.Tensor]:
        floats = tree_map(lambda leaf: leaf.double() if _is_count(leaf) else leaf.clone(), value)
        total, weight = super().lift(floats, replace(meta, owned=True))
        return total, weight

    def finish(self, acc: tuple[Tree, torch.Tensor]) -> Tree:
        mean = super().finish(acc)
        return None if mean is None else tree_map(lambda leaf: leaf.round().long() if _is_sum(leaf) else leaf, mean)


def _is_count(leaf: Params | torch.Tensor) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == torch.int64


def _is_sum(leaf: Params | torch.Tensor) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 and not leaf.ndim


def mean_like(reduction: Reduction) -> MemoryMean:
    """Return the mean of memories with the weights of the model's reduction; other reductions give "examples"."""
    return MemoryMean(reduction.weights if isinstance(reduction, WeightedMean) else "examples")
