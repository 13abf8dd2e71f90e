"""Clipping of updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fl.method.transform import Transform, TransformContext
from fl.registry import register
from fl.tensors.params import Params, clipped
from fl.tensors.trees import Tree


@register("transform", "clip")
@dataclass(frozen=True, kw_only=True)
class Clip(Transform):
    """u <- u * min(1, bound / |u|) for one group of the update, |u| over all its tensors.

    side: on the client, as private training asks (McMahan et al. 2018, arXiv:1710.06963, flat clipping), or on the server,
    which bounds what any client may do to the sum (Sun et al. 2019, arXiv:1911.07963, norm thresholding).
    """

    bound: float
    group: str = "model"
    side: Literal["client", "server"] = "client"

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound: {self.bound} is not positive")
        if self.side not in ("client", "server"):
            raise ValueError(f"side: {self.side!r} is not one of ['client', 'server']")

    def client(self, groups: Mapping[str, Tree], ctx: TransformContext) -> Mapping[str, Tree]:
        return self._clipped(groups) if self.side == "client" else groups

    def server(self, groups: Mapping[str, Tree], ctx: TransformContext) -> Mapping[str, Tree]:
        return self._clipped(groups) if self.side == "server" else groups

    def _clipped(self, groups: Mapping[str, Tree]) -> Mapping[str, Tree]:
        update = groups.get(self.group)
        if not isinstance(update, Params):
            known = [name for name, tree in groups.items() if isinstance(tree, Params)]
            raise ValueError(f"group: {self.group!r} is not one of the update's groups of parameters, {known}")
        return {**groups, self.group: clipped(update, self.bound)}
