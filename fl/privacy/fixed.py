"""Flat clipping to a constant bound.    u <- u * min(1, bound / |u|),    |u| over all tensors of all groups"""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import within
from fl.privacy.clipping import Clipping
from fl.privacy.mechanism import Norm
from fl.registry import register
from fl.tensors.trees import Tree


@register("clipping", "fixed")
@dataclass(frozen=True, kw_only=True)
class Fixed(Clipping):
    """Clip the whole update, all groups together, to one constant bound.

    Args:
        bound: largest norm of an update, positive.
    """

    bound: float

    def __post_init__(self) -> None:
        within("(0, inf)", bound=self.bound)

    def bounds_at(self, state: Tree, parts: int, norm: Norm) -> tuple[float, ...]:
        return (self.bound,)
