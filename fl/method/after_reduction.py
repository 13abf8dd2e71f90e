"""What the server does to reduced values before the strategy sees them, such as central noise or accounting.

updates -> reduction -> after_reduction, in order -> the answer of the strategy's Exchange
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fl.method.strategy import Metrics
from fl.tensors import random

Reduced = Mapping[str, Any]  # group -> the value that its reduction returned


@dataclass(frozen=True)
class ReductionContext:
    """What is known about a reduced value.

    Attributes:
        seed: seed of the run.
        round: the round, from 0.
        participation: number of the exchange in the run; part of the address of random draws.
        work: what the clients did, such as "train".
        clients: ids of the clients whose updates were reduced, (n,).
        num_examples: their numbers of training samples, (n,).
        part: index of the part in `after_reduction`, from 0.
    """

    seed: int
    round: int
    participation: int
    work: str
    clients: np.ndarray
    num_examples: np.ndarray
    part: int = 0

    def generator(self, purpose: str) -> torch.Generator:
        """Return a random stream of this exchange, part and purpose."""
        return random.torch_generator(self.seed, "after_reduction", self.participation, self.part, purpose)


class AfterReduction:
    """Base of what is done after a reduction. Subclasses are frozen dataclasses of hyper-parameters."""

    def check(self, groups: Collection[str]) -> None:
        """Check before round 0 that the part fits the groups that clients send.

        Raises:
            ValueError: it does not.
        """

    def apply(self, groups: Reduced, ctx: ReductionContext) -> tuple[Reduced, Metrics]:
        """Return (groups for the strategy, metrics of the round). It is not called if no client answered.

        Args:
            groups: group -> reduced value; do not change it in place.
            ctx: the exchange.
        """
        raise NotImplementedError


def apply_all(
    parts: tuple[AfterReduction, ...], groups: Reduced, ctx: ReductionContext
) -> tuple[Reduced, dict[str, float]]:
    """Apply parts one after another; return the groups and all metrics. Later metrics replace earlier ones.

    Raises:
        TypeError: a part returned something else than a pair of mappings.
        ValueError: a part returned other groups.
    """
    metrics: dict[str, float] = {}
    for index, part in enumerate(parts):
        who = f"after_reduction {type(part).__name__}: apply returned"
        pair = part.apply(groups, replace(ctx, part=index))
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(one, Mapping) for one in pair)):
            raise TypeError(f"{who} {type(pair).__name__}, expected a pair of mappings (groups, metrics)")
        if pair[0].keys() != groups.keys():
            raise ValueError(f"{who} the groups {sorted(pair[0])}, expected {sorted(groups)}")
        groups = pair[0]
        metrics |= {name: float(value) for name, value in pair[1].items()}
    return groups, metrics
