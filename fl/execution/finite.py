"""Find NaN and infinity in trees, and name the tensor that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fl import registry
from fl.tensors.params import Params
from fl.tensors.trees import Tree, leaves

SMALL = 1 << 14  # elements
HALF_MAX = 65504  # the largest finite number of IEEE half precision


def is_finite(tree: Tree) -> bool:
    """Whether a tree holds no NaN and no infinity.

    A sum is finite only if all its terms are, so one pass is enough. Where a sum overflows, the elements decide. They
    also decide for small tensors, by NumPy, because its calls cost less.
    """
    found = tree.buffers if isinstance(tree, Params) else leaves(tree)
    return all(_all_finite(leaf.detach()) for leaf in found if leaf.is_floating_point())


def _all_finite(leaf: Tensor) -> bool:
    plain = leaf.layout is torch.strided and not leaf.is_neg() and leaf.device.type == "cpu"
    if plain and leaf.numel() <= SMALL and leaf.dtype == torch.float32:
        return bool(np.isfinite(leaf.numpy()).all())
    return math.isfinite(leaf.sum().item()) or bool(torch.isfinite(leaf).all())


def non_finite(groups: Mapping[str, Tree], count: int) -> np.ndarray:
    """Return which of `count` stacked updates hold a NaN or an infinity, (count,) bool."""
    bad = np.zeros(count, bool)
    for leaf in leaves(groups):
        if leaf.is_floating_point():
            bad |= ~torch.isfinite(leaf.reshape(count, -1)).all(-1).cpu().numpy()
    return bad


def non_finite_name(groups: Mapping[str, Tree]) -> str:
    """The first tensor with a NaN or an infinity: its name in the model, or its group; "" if all are finite.

    >>> non_finite_name({"model": Params.of({"w": torch.ones(2), "b": torch.tensor([0.0, math.inf])})})
    'b'
    >>> non_finite_name({"model": torch.ones(2), "control": torch.tensor([math.nan])})
    'control'
    """
    for group, tree in groups.items():
        for name, tensor in _named(group, tree):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return name
    return ""


def overflow(codec: object, before: Mapping[str, Tree], after: Mapping[str, Tree]) -> str:
    """Tell that a codec made finite numbers infinite or NaN, with the tensor and its largest number; "" if it did not.

    Args:
        codec: the codec.
        before: what went into the codec, by group.
        after: what came out of it.
    """
    name = non_finite_name(after)
    if not name or not is_finite(before):
        return ""
    found = dict(pair for group, tree in before.items() for pair in _named(group, tree))
    if name not in found:  # a transform has other groups
        return ""
    largest = float(found[name].abs().max())
    described = _in_words(codec)
    if "fp16" in described and largest > HALF_MAX:
        return f"{described} of {name} overflows ({largest:g} > {HALF_MAX}): take bf16"
    return f"{described} of {name} gives numbers that are not finite; the largest that went in is {largest:g}"


def _in_words(codec: object) -> str:
    """The names of a codec, or of the codecs of a chain."""
    codecs = getattr(codec, "codecs", None)
    if codecs is not None:
        return " | ".join(map(_in_words, codecs))
    inner = getattr(codec, "codec", None)
    return registry.name_of(codec) if inner is None else _in_words(inner)


def _named(group: str, tree: Tree) -> list[tuple[str, Tensor]]:
    """Tensors of a group with their names; leaves that are no `Params` have the name of the group."""
    if isinstance(tree, Params):
        return list(tree.items())
    return [(group, leaf) for leaf in leaves(tree)]
