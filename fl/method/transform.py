"""Update transforms: what happens to an update between training and the sum, in two halves around the wire.

    train -> client halves, in order -> codec ~~> decode -> server halves, in order -> reduction

A transform is a frozen dataclass; both halves take and return the groups of an update, of one client or of C stacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl.tensors import random
from fl.tensors.trees import Tree

Groups = Mapping[str, Tree]


@dataclass(frozen=True)
class TransformContext:
    """Whose updates these are: `clients` (C,), stacked if `stacked`, else one."""

    seed: int
    round: int
    participation: int
    clients: np.ndarray
    num_examples: int | Tensor
    stacked: bool

    def generators(self, purpose: str) -> list[torch.Generator]:
        """A stream per client."""
        return [random.torch_generator(self.seed, int(c), self.participation, purpose) for c in self.clients]


class Transform:
    """Base: both halves do nothing."""

    def client(self, groups: Groups, ctx: TransformContext) -> Groups:
        return groups

    def server(self, groups: Groups, ctx: TransformContext) -> Groups:
        return groups
