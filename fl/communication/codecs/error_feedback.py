"""Error feedback: add what the codecs lost to the next message.

    sent = decode(encode(u + decay e))          e <- u + decay e - sent            e = 0 at first

Up, each client keeps one residual e per group, next to the state of its method. A dropped client keeps its old
residual. Down, the server keeps one e per shared group, as part of the run's state. Groups of a single client and
static groups have none.
With decay=1 nothing is lost, it only arrives later: e_T = sum of (u - sent).   |e| <= 2 (1 - c) / c max |u| behind a
codec with |error|^2 <= (1 - c)^2 |v|^2.   It adds no bytes. On disk it takes the bytes of the group for each client
that has trained.
Seide et al. 2014 (1-bit SGD); Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599; Karimireddy, Rebjock, Stich, Jaggi 2019,
arXiv:1901.09847.   Neutral: in front of an exact codec; decay=0.   It stands before all codecs that lose something.
Tables, sparse vectors and integers pass unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl.checks import within
from fl.communication.codecs.identity import Identity
from fl.communication.dense import dense_leaves, map_dense
from fl.registry import register
from fl.tensors.trees import Tree

Residuals = list[Tensor]  # one per dense floating leaf of a group, in order


@register("codec", "error_feedback")
@dataclass(frozen=True, kw_only=True)
class ErrorFeedback(Identity):
    """Add the residual of earlier messages before encoding.

    Args:
        decay: Share of the residual that is added, in [0, 1].
    """

    decay: float = 1.0

    wraps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("[0, 1]", decay=self.decay, hint="it is the share of the error that is kept")

    def add_residuals(self, tree: Tree, residuals: Residuals | None) -> Tree:
        """Return u + decay e. Residuals of other shapes, or None, count as zero."""
        if residuals is None or [e.shape for e in residuals] != [leaf.shape for leaf in dense_leaves(tree)]:
            return tree
        rest = iter(residuals)
        return map_dense(lambda leaf: leaf + self.decay * next(rest), tree)


def compression_error(sent: Tree, decoded: Tree) -> Residuals:
    """Return the next residuals: what was put into the codec minus what arrived."""
    return [a - b for a, b in zip(dense_leaves(sent), dense_leaves(decoded))]


def stack_residuals(residuals: list[Residuals | None], tree: Tree) -> Residuals | None:
    """Stack the residuals of clients along the client axis of `tree`.

    Clients without residuals, or with other shapes, get zeros. Returns None if no client has fitting residuals.
    """
    shapes = [leaf.shape[1:] for leaf in dense_leaves(tree)]
    fitting = [e if e is not None and [x.shape for x in e] == shapes else None for e in residuals]
    if not any(e is not None for e in fitting):
        return None
    return [
        torch.stack([torch.zeros_like(leaf[0]) if e is None else e[i] for e in fitting])
        for i, leaf in enumerate(dense_leaves(tree))
    ]
