"""BatchNorm in federated learning: whose running statistics a model uses.

batch       none: every batch, in evaluation too, is normalised by its own statistics, separately for each client
local       each client keeps its own running statistics; they are never sent
averaged    running statistics are sent and averaged like parameters, but gradient steps do not change them
"""

from __future__ import annotations

from typing import Literal

from torch import nn

BatchNorm = nn.modules.batchnorm._BatchNorm
Statistics = Literal["batch", "local", "averaged"]


def with_statistics(module: nn.Module, policy: Statistics) -> nn.Module:
    """The module with its BatchNorm layers under a policy; ValueError if it has none or they do not fit."""
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BatchNorm)]
    if not layers:
        raise ValueError(f"batch_norm: {policy!r}, but the model has no BatchNorm layer; leave it out")
    for name, layer in layers:
        if policy == "batch":
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        elif layer.momentum is None or layer.running_mean is None:
            raise ValueError(
                f"batch_norm: {policy!r} needs layers with running statistics and a momentum; {name} lacks one of them"
            )
        layer.__dict__["policy"] = policy
    return module


def statistics_names(module: nn.Module, policy: Statistics) -> list[str]:
    """Names of the running means and variances under a policy."""
    if policy == "batch":
        return []
    layers = [name for name, layer in module.named_modules() if vars(layer).get("policy") == policy]
    return [f"{name}.{statistic}".lstrip(".") for name in layers for statistic in ("running_mean", "running_var")]


def depends_on_batch(module: nn.Module) -> bool:
    """Whether the output for a sample depends, in evaluation, on the other samples of its batch."""
    return any(isinstance(layer, BatchNorm) and layer.running_mean is None for layer in module.modules())
