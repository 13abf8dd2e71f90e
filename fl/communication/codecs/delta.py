"""Send differences to a group that the receiver already has.

    up     sent = group - the group of that name that the client received
    down   sent = group - this client's last copy of the group; a new client gets the whole group, without the codec

Use it for groups that carry whole tensors (models, heads). The codecs behind it then see small numbers and lose little.
Up, the group "model" is never changed, because by convention it is a difference already. Down, the client's copy is
what it decoded. So what was lost last time is part of the next difference: error feedback is built in.
It adds no bytes. Down, each client of a cohort has its own encoding, so there is no multicast and clients train in the
loop. The client's copy is stored with its state: on disk, the bytes of the groups for every client that has taken part.
Sattler, Wiedemann, Mueller, Samek 2019, arXiv:1903.02891 (sec. V, partial sums of updates); Tang et al. 2019
(DoubleSqueeze), arXiv:1905.05957.   Neutral: in front of an exact codec, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fl.communication.codecs.identity import Identity
from fl.communication.dense import dense_leaves, map_dense
from fl.registry import register
from fl.tensors.trees import Tree


@register("codec", "delta")
@dataclass(frozen=True, kw_only=True)
class Delta(Identity):
    """Encode differences instead of whole tensors.

    Args:
        groups: Names of the groups to send as differences; None means all groups.
    """

    groups: tuple[str, ...] | None = None

    wraps: ClassVar[bool] = True

    def covers(self, group: str) -> bool:
        """Whether a group is sent as a difference."""
        return self.groups is None or group in self.groups


def same_dense_shapes(tree: Tree, base: Tree, stacked: bool = False) -> bool:
    """Whether two trees have the same dense leaves in shape and dtype.

    If `stacked`, `tree` holds many clients along a leading axis and `base` is one client's tree.
    """
    mine = [(leaf.shape[1:] if stacked else leaf.shape, leaf.dtype) for leaf in dense_leaves(tree)]
    return mine == [(leaf.shape, leaf.dtype) for leaf in dense_leaves(base)]


def subtract_dense(tree: Tree, base: Tree) -> Tree:
    """Subtract the dense leaves of `base`; other leaves stay."""
    rest = iter(dense_leaves(base))
    return map_dense(lambda leaf: torch.sub(leaf, next(rest)), tree)


def add_dense(tree: Tree, base: Tree) -> Tree:
    """Add the dense leaves of `base`; other leaves stay."""
    rest = iter(dense_leaves(base))
    return map_dense(lambda leaf: torch.add(next(rest), leaf), tree)
