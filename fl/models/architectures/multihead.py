"""One encoder with a linear head for each task.    outputs = (W_1 h + b_1, ..., W_n h + b_n),  h = relu(encoder(x))

Tensors: `encoder.*` and `heads.NAME.*`. The heads are those of `task: multitask`, in its order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fl.checks import at_least
from fl.models.architectures.linear import MLP
from fl.models.section import Architecture
from fl.registry import register


class Heads(nn.ModuleDict):
    """Linear layers on the same features by name; their outputs are concatenated."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs (B, K) of all heads for features (B, d)."""
        return torch.cat([head(features) for head in self.values()], -1)


@register("model", "multihead")
@dataclass(frozen=True, kw_only=True)
class MultiHead:
    """One encoder with a linear head for each of several tasks.

    Args:
        encoder: the model that makes the features; a ReLU follows it.
        features: number of features, at least 1.
        heads: number of outputs of each head by name. Default: those of `task: multitask`; else one head, `all`.
    """

    encoder: Architecture = field(default_factory=lambda: MLP(hidden=(24,)))
    features: int = 16
    heads: dict[str, int] | None = None

    def __post_init__(self) -> None:
        at_least(1, features=self.features)

    def for_heads(self, heads: Mapping[str, int]) -> MultiHead:
        """Return the architecture with the heads of a task.

        Raises:
            ValueError: `heads` of the configuration are others, or in another order.
        """
        if self.heads is not None and list(self.heads.items()) != list(heads.items()):
            raise ValueError(f"heads: {self.heads} are not those of the task, {dict(heads)}; leave them out")
        return replace(self, heads=dict(heads))

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        heads = self.heads or {"all": outputs}
        if sum(heads.values()) != outputs:
            raise ValueError(f"heads: {heads} have {sum(heads.values())} outputs, and the task has {outputs}")
        linear = Heads({name: nn.Linear(self.features, count) for name, count in heads.items()})
        encoder = self.encoder.build(shape, self.features)
        return nn.Sequential(OrderedDict(encoder=encoder, relu=nn.ReLU(), heads=linear))
