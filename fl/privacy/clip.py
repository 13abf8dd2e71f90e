"""Clipping of updates."""

from __future__ import annotations

from dataclasses import dataclass

from fl.params import norm
from fl.registry import register
from fl.transform import Transform


@register("transform", "clip")
@dataclass(frozen=True, kw_only=True)
class Clip(Transform):
    """On the client: u <- u * min(1, bound / |u|) for one group of the update, |u| over all its tensors.

    McMahan et al. 2018, arXiv:1710.06963 (flat clipping).
    """

    bound: float
    group: str = "model"

    def __post_init__(self):
        if self.bound <= 0:
            raise ValueError(f"bound: {self.bound} is not positive")

    def client(self, groups, ctx):
        update = groups[self.group]
        factor = self.bound / norm(update).clamp(min=self.bound)
        return {**groups, self.group: update * factor}
