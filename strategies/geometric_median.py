"""Geometric median of the updates (RFA), robust to Byzantine clients: less than half of the weight may be arbitrary.

    model <- model + m,   m = argmin sum_i p_i |x_i - m|      by smoothed Weiszfeld steps from the coordinates' medians:
    m <- sum_i a_i x_i / sum_i a_i,   a_i = p_i / max(|x_i - m|, smoothing),   until m moves by 1e-8 of its distances

Pillutla, Kakade, Harchaoui 2022, arXiv:1912.13445. The median moves and turns with the updates x_i, and on a line with
equal weights it is the usual one.  Each m is a mean with weights a, so |x_i - m| follows from inner products: one pass
over blocks of coordinates adds up the products of all pairs, and a second one takes the last mean. Memory stays flat,
as for `median`, beside n^2 numbers. The products are those of directions from the coordinates' medians, because very
long updates of attackers would otherwise drown the distances of the honest ones in rounding errors.
Differs from the paper: it converges (at most 1,000 steps) where the paper takes 4 steps; the server sees the updates,
where the paper sums them by secure aggregation.
Equals FedAvg: a `smoothing` above all distances, to 1e-6.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl import (
    Collect,
    FedAvgEquivalent,
    Layout,
    Metrics,
    Params,
    ServerContext,
    SpilledVector,
    Strategy,
    checks,
    order_statistics,
    register,
)

STEPS = 1000  # of Weiszfeld, at most
TOLERANCE = 1e-8  # of the harmonic mean of the distances, which far points do not change
log = logging.getLogger(__name__)


def weiszfeld(products: Tensor, shares: Tensor, smoothing: float) -> Tensor:
    """Return the weights a of the geometric median sum_i a_i x_i, (n,), with sum 1.

    >>> line = torch.tensor([[-1.0], [0.0], [9.0]], dtype=torch.float64)
    >>> weights = weiszfeld(line @ line.T, torch.full((3,), 1 / 3), smoothing=1e-9)
    >>> round(float(weights @ line[:, 0]), 4)
    0.0

    Args:
        products: inner products <x_i, x_j> of the points, float64 (n, n). The search starts at 0.
        shares: weights p of the points, (n,), with sum 1.
        smoothing: distances below it count as it, positive.
    """
    shares, lengths = shares.double(), products.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    cosines = products * inverse * inverse[:, None]
    a, along = shares, torch.zeros_like(shares)  # m = sum_i along_i x_i / |x_i|
    for _ in range(STEPS):
        square = lengths**2 - 2 * lengths * (cosines @ along) + along @ cosines @ along
        pulls = shares / square.clamp(min=0).sqrt().clamp(min=smoothing)
        a, before = pulls / pulls.sum(), along
        along = a * lengths
        step = along - before
        if float((step @ cosines @ step).clamp(min=0).sqrt()) <= TOLERANCE / float(pulls.sum()):
            return a
    log.warning("geometric_median: no convergence after %d steps; set a larger strategy.smoothing", STEPS)
    return a


@dataclass(frozen=True)
class GeometricMedianOf(Collect):
    """The geometric median of the updates, block by block of their coordinates. The mean if all weights are 0.

    Args:
        weights: p_i is the number of training samples ("examples"), or 1 ("uniform").
        smoothing: distances below it count as it, positive.
    """

    weights: Literal["examples", "uniform"] = "examples"
    smoothing: float = 1e-6

    def finish(self, acc: tuple[Layout, list[tuple[SpilledVector, float]]]) -> Params:
        layout, rows = acc
        vectors = [spilled.open() for spilled, _ in rows]
        counts = torch.tensor([count if self.weights == "examples" else 1.0 for _, count in rows], dtype=torch.float64)
        shares = counts / counts.sum() if counts.sum() > 0 else torch.full_like(counts, 1 / len(counts))
        products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for _, _, offsets in self._blocks(vectors):
            products += offsets @ offsets.T
        a, out = weiszfeld(products, shares, self.smoothing), torch.empty(layout.numel, dtype=vectors[0].dtype)
        for columns, centre, offsets in self._blocks(vectors):
            out[columns] = (centre + a @ offsets).to(out.dtype)
        return Params.expand(layout, out)

    def _blocks(self, vectors: list[Tensor]) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield blocks of coordinates: (their place, their medians (block,), distances from them (n, block))."""
        for start in range(0, len(vectors[0]), self.block):
            columns = slice(start, start + self.block)
            block = torch.stack([vector[columns] for vector in vectors]).double()
            middle = (len(vectors) - 1) // 2
            centre = order_statistics(block, middle, middle + 1)[0]
            yield columns, centre, block - centre


@register("strategy", "geometric_median", "rfa")
@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Strategy):
    """Move the model by the geometric median of the updates.

    Args:
        weights: p_i is the client's number of training samples (`examples`, as in the paper), or equal (`uniform`): a
            number of samples is a client's own claim.
        smoothing: distances from the median below it count as it, positive; in units of the updates' Euclidean norm.
            Above all distances the median is the mean.
        lr: factor of each step of the server.
    """

    weights: Literal["examples", "uniform"] = "examples"
    smoothing: float = 1e-6
    lr: float = 1.0

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(strategy={"smoothing": 1e9}, bits=False)

    def __post_init__(self) -> None:
        checks.one_of(("examples", "uniform"), weights=self.weights)
        checks.positive(smoothing=self.smoothing)

    def reduction(self, state: Params, ctx: ServerContext) -> Collect:
        return GeometricMedianOf(weights=self.weights, smoothing=self.smoothing)

    def step(self, state: Params, reduced: Params, ctx: ServerContext) -> tuple[Params, Metrics]:
        return state + self.lr * reduced, {}
