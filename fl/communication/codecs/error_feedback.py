"""Error feedback: what the codecs behind it lost is added to the next message.

    sent = decode(encode(u + decay e))          e <- u + decay e - sent            e is zero at first

Up, each client keeps an e for each group that it sends, beside what its method keeps; who is dropped keeps the old one. Down, the
server keeps one for each shared group, as part of the run's state (groups of a client's own and static ones go without).
With decay=1 nothing is lost, only late: e_T = sum of (u - sent).   |e| <= 2 (1 - c) / c max |u| behind a codec with |error|^2 <=
(1 - c)^2 |v|^2.   It takes no bytes, and on disk those of the group for each client that has trained.
Seide et al. 2014 (1-bit SGD); Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599; Karimireddy, Rebjock, Stich, Jaggi 2019,
arXiv:1901.09847.   Neutral: in front of an exact codec; decay=0.   It stands in front of all codecs that lose something. Tables,
sparse vectors and integers pass it by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl.communication.codec import Identity
from fl.communication.dense import dense, map_dense
from fl.registry import register
from fl.tensors.trees import Tree

Residuals = list[Tensor]  # of the dense floating leaves of a group, in order


@register("codec", "error_feedback")
@dataclass(frozen=True, kw_only=True)
class ErrorFeedback(Identity):
    decay: float = 1.0

    wraps: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay: {self.decay} is not in [0, 1]; it is the share of the error that is kept")

    def fed(self, tree: Tree, memory: Residuals | None) -> Tree:
        """u + decay e; a memory of other shapes is none."""
        if memory is None or [m.shape for m in memory] != [leaf.shape for leaf in dense(tree)]:
            return tree
        rest = iter(memory)
        return map_dense(lambda leaf: leaf + self.decay * next(rest), tree)


def compression_error(fed: Tree, arrived: Tree) -> Residuals:
    """The next e."""
    return [a - b for a, b in zip(dense(fed), dense(arrived))]


def stacked_memories(memories: list[Residuals | None], tree: Tree) -> Residuals | None:
    """Memories of clients stacked as the leaves of `tree` are; zeros for who has none, or one of other shapes."""
    shapes = [leaf.shape[1:] for leaf in dense(tree)]
    fitting = [m if m is not None and [x.shape for x in m] == shapes else None for m in memories]
    if not any(m is not None for m in fitting):
        return None
    return [
        torch.stack([torch.zeros_like(leaf[0]) if m is None else m[i] for m in fitting])
        for i, leaf in enumerate(dense(tree))
    ]
