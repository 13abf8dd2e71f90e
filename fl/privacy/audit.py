"""An audit during the run: canary clients, and what an attacker can tell about them from the noisy sums.

Each canary is a client beside those with data, with probability 1/2. It takes part as `privacy.sampling` draws it, and
sends a huge update in a random direction of its own, which is clipped like any other. The attacker knows everything
but which canaries there are: it subtracts the other clients' sums from all noisy sums, adds up what is left, and takes
the part of it in a canary's direction as the canary's score (fl/privacy/empirical.py).

A bound above epsilon refutes the account. A bound below it proves nothing; without noise it is large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.checks import at_least, within
from fl.errors import ConfigError
from fl.method.min_separation import MinSeparation
from fl.method.reduction import Meta
from fl.method.sampler import CohortSampler, Poisson
from fl.privacy.empirical import Guesses, best_guesses
from fl.privacy.private_sum import Clipped, PrivateSum
from fl.privacy.streams import Streams
from fl.tensors import random
from fl.tensors.params import Params
from fl.tensors.trees import Tree, leaves, tree_map

HUGE = 1e3  # norm of a canary's update before clipping, in clip bounds


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Canaries that show how much the noisy sums tell about single clients. They change what the run learns.

    The last planned round has the metric `empirical_epsilon`, a lower bound of epsilon (Steinke, Nasr, Jagielski 2023,
    arXiv:2305.08846).

    Args:
        canaries: number m of canaries, at least 10. About half of them take part. The bound is at most about
            log(m / 3). An update needs 4 m parameters or more, or the directions are too much alike.
        confidence: probability with which the bound holds, in (0, 1).
    """

    canaries: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        at_least(10, canaries=self.canaries)
        within("(0, 1)", confidence=self.confidence)

    def check(self, sampler: CohortSampler) -> None:
        """Check that canaries can take part like clients.

        Raises:
            ValueError: they cannot.
        """
        if not isinstance(sampler, (Poisson, MinSeparation)):
            raise ValueError("canaries take part independently of the clients; use sampling poisson or min_separation")
        sampler.check(self.canaries)

    def check_size(self, size: int) -> None:
        """Check that updates of `size` parameters have room for the canaries' directions.

        Raises:
            ConfigError: there are too many canaries.
        """
        if 4 * self.canaries > size:
            raise ConfigError(
                "privacy.audit.canaries",
                f"{self.canaries} random directions are too much alike in updates of {size} parameters; use at most "
                f"{size // 4}, or a larger model",
            )


class Canaries:
    """The canaries of a run. What lasts from release to release is in `record`.

    Args:
        audit: the configuration.
        sampler: draws the canaries that take part.
        streams: source of random numbers.
    """

    def __init__(self, audit: Audit, sampler: CohortSampler, streams: Streams) -> None:
        self.audit, self.sampler, self.streams = audit, sampler, streams
        coins = streams.normal({"coins": torch.zeros(audit.canaries)}, "canaries", "coins")["coins"]
        self.included = (coins > 0).numpy()
        self.state = sampler.init(audit.canaries)
        self.seen: dict[str, Tree] | None = None  # noisy sums less those of the clients, added up

    def join(
        self, release: int, sums: dict[str, Tree], inside: np.ndarray, reduction: PrivateSum, bound: float
    ) -> tuple[dict[str, Tree], np.ndarray]:
        """Return the sums, and the numbers of clients within the bounds, with the canaries of a release.

        Args:
            release: number of the release.
            sums: the clients' sums.
            inside: what `PrivateSum` counts beside them, (K,).
            reduction: clips and adds up.
            bound: the clip bound.

        Raises:
            ConfigError: there are too many canaries for the updates' size.
        """
        self.audit.check_size(numel(sums))
        seed = int(random.hash64(self.streams.sampling_seed(release), "canaries")) >> 1
        self.state, drawn = self.sampler.sample(self.state, release, seed, np.ones(self.audit.canaries, np.int64))
        total = None
        for canary in drawn[self.included[drawn]]:
            update = self.update(int(canary), sums, reduction, bound)
            total = update if total is None else reduction.merge(total, update)
        if total is None:
            return sums, inside
        return _combined(torch.add, sums, total["sums"]), inside + total["inside"].numpy()

    def update(self, canary: int, like: Mapping[str, Tree], reduction: PrivateSum, bound: float) -> Clipped:
        """Return the clipped update of a canary."""
        direction = self.streams.normal(like, "canaries", canary)
        factor = HUGE * bound / _norm(direction)
        huge = {name: tree_map(lambda leaf: leaf * factor, tree) for name, tree in direction.items()}
        return reduction.lift(huge, Meta(client=-1, num_examples=reduction.cap or 1))

    def observe(
        self,
        noisy: Mapping[str, Tree],
        clients: Mapping[str, Tree],
        reduction: PrivateSum,
        bound: float,
        delta: float | None,
    ) -> dict[str, float]:
        """Take note of a release; return the bound of epsilon as a metric after the last one.

        Args:
            noisy: the noisy sums with canaries.
            clients: the sums of the clients alone.
            reduction: clips updates.
            bound: the clip bound.
            delta: delta of the guarantee; None: this is not the last release.
        """
        left = _combined(torch.sub, noisy, clients)
        self.seen = left if self.seen is None else _combined(torch.add, self.seen, left)
        return {} if delta is None else {"empirical_epsilon": self.guesses(reduction, bound, delta).epsilon}

    def guesses(self, reduction: PrivateSum, bound: float, delta: float) -> Guesses:
        """Return the guesses of the attacker, and the bound of epsilon that they prove."""
        scores = np.zeros(self.audit.canaries)
        for canary in range(self.audit.canaries) if self.seen is not None else ():
            assert self.seen is not None
            update = self.update(canary, self.seen, reduction, bound)["sums"]
            scores[canary] = _product(update, self.seen) / _norm(update)
        return best_guesses(scores, self.included, delta, self.audit.confidence)

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"state": self.state, "seen": self.seen}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.state, self.seen = record["state"], record["seen"]


def _combined(
    operation: Callable[[Tensor, Tensor], Tensor], a: Mapping[str, Tree], b: Mapping[str, Tree]
) -> dict[str, Tree]:
    """Return an operation on two values of all groups."""
    out: dict[str, Tree] = {}
    for name, tree in a.items():
        if isinstance(tree, Params):
            pairs = zip(tree.buffers, b[name].buffers)
            out[name] = Params(tree.layout, tuple(operation(x, y) for x, y in pairs))
        else:
            out[name] = operation(tree, b[name])
    return out


def numel(groups: Mapping[str, Tree]) -> int:
    """Return the number of parameters of all groups."""
    return sum(tree.numel if isinstance(tree, Params) else tree.numel() for tree in groups.values())


def _product(a: Mapping[str, Tree], b: Mapping[str, Tree]) -> float:
    """Return the inner product over all groups."""
    total = 0.0
    for name, tree in a.items():
        other = b[name]
        pairs = zip(tree.buffers, other.buffers) if isinstance(tree, Params) else [(tree, other)]
        total += sum(float(torch.dot(x.flatten().double(), y.flatten().double())) for x, y in pairs)
    return total


def _norm(groups: Mapping[str, Tree]) -> float:
    return float(np.sqrt(sum(float(leaf.double().square().sum()) for leaf in leaves(dict(groups)))))
