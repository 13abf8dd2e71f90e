"""Clip updates to a maximum norm, for robustness. Differential privacy clips by itself, see fl/privacy/section.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl.checks import one_of, within
from fl.method.transform import Groups, Transform, TransformContext
from fl.registry import register
from fl.tensors.params import Params, clipped


@register("transform", "clip")
@dataclass(frozen=True, kw_only=True)
class Clip(Transform):
    """u <- u * min(1, bound / |u|) for one group of the update, with the Euclidean norm |u| over all its tensors.

    Args:
        bound: The largest norm, positive.
        group: Name of the group to clip. It must be a group of parameters.
        side: "client" clips before the codec. "server" clips after decoding, which limits the effect of any single
            client (Sun et al. 2019, arXiv:1911.07963, norm thresholding). Neither makes a run private; use `privacy:`.
    """

    bound: float
    group: str = "model"
    side: Literal["client", "server"] = "client"

    def __post_init__(self) -> None:
        within("(0, inf)", bound=self.bound)
        one_of(("client", "server"), side=self.side)

    def client(self, groups: Groups, ctx: TransformContext) -> Groups:
        return self._clipped(groups) if self.side == "client" else groups

    def server(self, groups: Groups, ctx: TransformContext) -> Groups:
        return self._clipped(groups) if self.side == "server" else groups

    def _clipped(self, groups: Groups) -> Groups:
        update = groups.get(self.group)
        if not isinstance(update, Params):
            known = [name for name, tree in groups.items() if isinstance(tree, Params)]
            hint = "" if known else "; clip is not for methods with such updates, so leave it out"
            raise ValueError(f"group: {self.group!r} is not one of the update's groups of parameters, {known}{hint}")
        return {**groups, self.group: clipped(update, self.bound)}
