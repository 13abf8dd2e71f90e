"""Modules whose random draws are addressed (noise is drawn outside the forward pass, per client, and enters as arrays), what
BatchNorm remembers, and which names belong to what.

    batch_norm: batch       nothing: every batch, in evaluation too, is normalised by its own statistics, a client's apart from others'
                local       running statistics that each client keeps for itself; they never travel
                averaged    running statistics that travel and are averaged like parameters, but never descend
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes entries with probability p and scales the rest by 1 / (1 - p); reads its mask from `self.mask`.

    In training the engine sets `mask` (B, *features) before each step; without one the module refuses to run.
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: {p} is not in [0, 1)")
        self.p = p
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.mask is None:
            raise RuntimeError(
                "fl.models.nn.Dropout in training mode has no mask; fl.models.nn.Noise draws it before each step"
            )
        return x * self.mask

    def extra_repr(self) -> str:
        return f"p={self.p}"


def addressed(module: nn.Module) -> nn.Module:
    """The module with every nn.Dropout replaced by ours, whose noise does not depend on a global generator."""
    if type(module) is nn.Dropout:
        return Dropout(module.p)
    for name, child in list(module._modules.items()):  # named_children() skips a module's second use
        if child is not None:
            setattr(module, name, addressed(child))
    return module


_BatchNorm = nn.modules.batchnorm._BatchNorm
Statistics = Literal["batch", "local", "averaged"]


def with_statistics(module: nn.Module, policy: Statistics) -> nn.Module:
    """The module with its BatchNorm layers under a policy, see above."""
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        raise ValueError(f"batch_norm: {policy!r}, but the model has no BatchNorm layer; leave it out")
    for name, layer in layers:
        if policy == "batch":
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        elif layer.momentum is None or layer.running_mean is None:
            raise ValueError(
                f"batch_norm: {policy!r} takes layers with running statistics and a momentum; {name} lacks one"
            )
        layer.policy = policy
    return module


def statistics(module: nn.Module, policy: Statistics) -> list[str]:
    """Names of the running means and variances that are under this policy."""
    layers = [name for name, layer in module.named_modules() if getattr(layer, "policy", None) == policy != "batch"]
    return [f"{name}.{own}".lstrip(".") for name in layers for own in ("running_mean", "running_var")]


def looks_at_batch(module: nn.Module) -> bool:
    """Whether a sample's output depends, in evaluation, on what else is in its batch."""
    return any(isinstance(layer, _BatchNorm) and layer.running_mean is None for layer in module.modules())


class DropoutMasks:
    """Draws the masks of a module's Dropout layers, for clients each with a generator of its own."""

    def __init__(self, module: nn.Module, sample: Callable[[], Tensor]):
        """sample() -> (1, ...), an input, from which the layers' shapes are learnt if there are any."""
        self.layers = [m for m in module.modules() if isinstance(m, Dropout) and m.p > 0]
        self.shapes: dict[Dropout, tuple[int, ...]] = {}
        if self.layers:
            hooks = [m.register_forward_hook(self._learn) for m in self.layers]
            mode = module.training
            module.eval()
            with torch.no_grad():
                module(sample())
            module.train(mode)
            for hook in hooks:
                hook.remove()

    def _learn(self, layer: Dropout, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if layer in self.shapes:
            raise ValueError("a Dropout layer is used twice in one forward pass; give each use a layer of its own")
        self.shapes[layer] = inputs[0].shape[1:]

    def draw(self, generators: Sequence[torch.Generator], lengths: Sequence[int]) -> list[Tensor]:
        """Per layer a mask (C, max(lengths), *features); client c draws `lengths[c]` rows, the rest are zeros. What is drawn does
        not depend on the device it is for."""
        masks = []
        for layer, shape in self.shapes.items():
            mask = torch.zeros(len(generators), max(lengths), *shape, device="cpu")
            for c, (generator, length) in enumerate(zip(generators, lengths)):
                mask[c, :length].bernoulli_(1 - layer.p, generator=generator)
            masks.append(torch.as_tensor(mask.div_(1 - layer.p)))
        return masks

    def set(self, masks: Sequence[Tensor | None]) -> None:
        for layer, mask in zip(self.shapes, masks):
            layer.mask = mask


def head_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the parameter names that belong to the last linear layer that has any."""
    known = set(names)
    for layer, child in reversed(list(module.named_modules())):
        found = [
            n for n in (f"{layer}.{own}".lstrip(".") for own, _ in child.named_parameters(recurse=False)) if n in known
        ]
        if isinstance(child, nn.Linear) and found:
            return found
    raise ValueError("model: it has no linear layer that is trained; name the tensors by patterns")


def norm_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the parameter names that belong to normalisation layers."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    layers = {layer for layer, child in module.named_modules() if isinstance(child, kinds)}
    return [name for name in names if name.rpartition(".")[0] in layers]
