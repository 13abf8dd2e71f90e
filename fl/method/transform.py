"""Update transforms: functions of an update between training and reduction, such as clipping or noise.

    train -> client side, in order -> codec ~~> decode -> server side, in order -> reduction

Both sides take and return the groups of an update, of one client or of C clients stacked.
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
    """What a transform knows about updates.

    Attributes:
        seed: seed of the run.
        round: the round, from 0.
        participation: number of the exchange in the run; part of the address of random draws.
        clients: ids of the clients, (C,).
        num_examples: number of training samples, an int; if stacked an int64 tensor (C,).
        stacked: whether each leaf has a leading axis C; else C is 1 and there is no such axis.
    """

    seed: int
    round: int
    participation: int
    clients: np.ndarray
    num_examples: int | Tensor
    stacked: bool

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return one random stream of this purpose per client."""
        return [random.torch_generator(self.seed, int(c), self.participation, purpose) for c in self.clients]


class Transform:
    """Base of transforms. Subclasses are frozen dataclasses of hyper-parameters. By default neither side changes."""

    def client(self, groups: Groups, ctx: TransformContext) -> Groups:
        """Return the groups that the client encodes."""
        return groups

    def server(self, groups: Groups, ctx: TransformContext) -> Groups:
        """Return the groups that are reduced, from the decoded ones."""
        return groups
