"""Differences to what the other end has.

    up     sent = group - the group of that name as the client received it
    down   sent = group - the group as this client last had it;   the whole group, as it is, to a client that never had it

For groups that carry whole tensors (models, heads): behind it codecs see numbers that are small, and lose little of the model.
Up it leaves alone the group "model", which by convention is a difference already. Down the client's copy is what it decoded, so
that what was lost last time is part of the next difference: error feedback is built in. `groups`: those that it is for (default: all).
It takes no bytes. Down each client of a cohort has an encoding of its own (no multicast, trained in the loop), and its copy lies
with its state: on disk the bytes of the groups for every client that has taken part.
Sattler, Wiedemann, Mueller, Samek 2019, arXiv:1903.02891 (sec. V, partial sums of updates); Tang et al. 2019 (DoubleSqueeze),
arXiv:1905.05957.   Neutral: in front of an exact codec, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fl.communication.codec import Identity
from fl.communication.dense import dense, map_dense
from fl.registry import register
from fl.tensors.trees import Tree


@register("codec", "delta")
@dataclass(frozen=True, kw_only=True)
class Delta(Identity):
    groups: tuple[str, ...] | None = None

    wraps: ClassVar[bool] = True

    def covers(self, group: str) -> bool:
        return self.groups is None or group in self.groups


def alike(tree: Tree, base: Tree, stacked: bool = False) -> bool:
    """Whether a tree (or one of many clients, stacked) and what it is compared with have the same dense leaves."""
    mine = [(leaf.shape[1:] if stacked else leaf.shape, leaf.dtype) for leaf in dense(tree)]
    return mine == [(leaf.shape, leaf.dtype) for leaf in dense(base)]


def minus(tree: Tree, base: Tree) -> Tree:
    rest = iter(dense(base))
    return map_dense(lambda leaf: torch.sub(leaf, next(rest)), tree)


def plus(tree: Tree, base: Tree) -> Tree:
    rest = iter(dense(base))
    return map_dense(lambda leaf: torch.add(next(rest), leaf), tree)
