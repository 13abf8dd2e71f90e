"""Clippings of several parts of an update, each to a bound of its own.

McMahan, Ramage, Talwar, Zhang 2018, arXiv:1710.06963, Section 2 (per-layer clipping).  The noise has the same standard
deviation in all coordinates: noise multiplier * sqrt(sum_k bound_k^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fl.checks import within
from fl.privacy.clipping import Clipping, Part, all_tensors
from fl.privacy.mechanism import Norm
from fl.registry import register
from fl.tensors.trees import Tree


@register("clipping", "per_layer")
@dataclass(frozen=True, kw_only=True)
class PerLayer(Clipping):
    """Clip each layer of the model by itself; the K layers have equal bounds, bound / sqrt(K).

    A layer is the tensors whose names agree up to the last dot, such as `fc1.weight` and `fc1.bias`. For mechanisms
    that clip in the L1 norm the bounds are bound / K.

    Args:
        bound: bound of the whole update, positive.
    """

    bound: float

    def __post_init__(self) -> None:
        within("(0, inf)", bound=self.bound)

    def parts(self, groups: Mapping[str, Tree]) -> tuple[Part, ...]:
        layers: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for group, name in all_tensors(groups):
            layers.setdefault((group, name.rpartition(".")[0]), []).append((group, name))
        return tuple(map(tuple, layers.values()))

    def bounds_at(self, state: Tree, parts: int, norm: Norm) -> tuple[float, ...]:
        return (self.bound / (parts if norm == "l1" else math.sqrt(parts)),) * parts


@register("clipping", "per_group")
@dataclass(frozen=True, kw_only=True)
class PerGroup(Clipping):
    """Clip groups of tensors by themselves. The bound of the whole update is sqrt(sum of the squared bounds).

    Args:
        bounds: glob pattern of tensors -> bound, positive, as in {"head.*": 0.1, "*": 0.5}. A tensor belongs to the
            first pattern that matches its name; tensors of other groups than "model" are named GROUP/NAME.
    """

    bounds: dict[str, float]

    def __post_init__(self) -> None:
        for bound in self.bounds.values():
            within("(0, inf)", bounds=bound)

    def __hash__(self) -> int:
        return hash(tuple(self.bounds.items()))

    def parts(self, groups: Mapping[str, Tree]) -> tuple[Part, ...]:
        found: dict[str, list[tuple[str, str]]] = {pattern: [] for pattern in self.bounds}
        for group, name in all_tensors(groups):
            full = name if group == "model" else f"{group}/{name}" if name else group
            pattern = next((pattern for pattern in self.bounds if fnmatchcase(full, pattern)), None)
            if pattern is None:
                raise ValueError(f"bounds: no pattern matches {full!r}, which clients send; add it, or '*'")
            found[pattern].append((group, name))
        if empty := [pattern for pattern, tensors in found.items() if not tensors]:
            raise ValueError(f"bounds: {empty[0]!r} matches no tensor that earlier patterns leave; remove it")
        return tuple(map(tuple, found.values()))

    def bounds_at(self, state: Tree, parts: int, norm: Norm) -> tuple[float, ...]:
        return tuple(self.bounds.values())
