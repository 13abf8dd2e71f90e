"""Gaussian noise that the server adds to a reduced value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.checks import not_negative, one_of
from fl.method.after_reduction import AfterReduction, Reduced, ReductionContext
from fl.method.strategy import Metrics
from fl.registry import register
from fl.tensors.params import Params
from fl.tensors.trees import tree_map


@register("after_reduction", "central_noise")
@dataclass(frozen=True, kw_only=True)
class CentralNoise(AfterReduction):
    """v <- v + std * n for one group of the reduced update, n standard normal. Metric of the round: noise_std.

    This is the noise of central differential privacy (McMahan et al. 2018, arXiv:1710.06963) without its accounting.
    For a mean of m clients that clip their updates to S, the noise multiplier is z = std * m / S.
    Neutral: std=0.

    Args:
        std: Standard deviation of the noise on the reduced value, 0 or more.
        group: Name of the group.
    """

    std: float
    group: str = "model"

    def __post_init__(self) -> None:
        not_negative(std=self.std)

    def check(self, groups: Collection[str]) -> None:
        one_of(sorted(groups), group=self.group)

    def apply(self, groups: Reduced, ctx: ReductionContext) -> tuple[Reduced, Metrics]:
        if self.group not in groups:  # another exchange of the round has it
            return groups, {}
        if self.std == 0:
            return groups, {"noise_std": 0.0}
        generator = ctx.generator("noise")

        def noisy(leaf: Params | Tensor) -> Params | Tensor:
            if isinstance(leaf, Params):
                return Params.of({name: _added(tensor, self.std, generator) for name, tensor in leaf.items()})
            return _added(leaf, self.std, generator)

        return {**groups, self.group: tree_map(noisy, groups[self.group])}, {"noise_std": self.std}


def _added(tensor: Tensor, std: float, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor + std * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
