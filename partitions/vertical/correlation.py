"""Parties whose columns correlate: beta = 0 puts correlated columns together, beta = 1 spreads them over the parties.

    Pcor(i, j) = s / sqrt(d),   d = min(d_i, d_j), and 0 if d = 1;   s: standard deviation of the d singular values of
                                the Spearman correlations (d_i, d_j) between the columns of parties i and j
    Icor = mean_i 1/(P - 1) sum_{j != i} (Pcor(i, j) - Pcor(i, i))
    a split for beta has the Icor nearest to beta max + (1 - beta) min

Wu, Hou, He 2023, arXiv:2307.02040 (VertiBench). The direction of beta follows the authors' program. All splits have
equal numbers of columns. Up to 10 columns all splits are compared. Beyond that, random swaps of two columns climb from
random splits to the minimum and to the maximum of Icor, and all splits on the way are compared; the authors' program
uses a genetic algorithm. The compared splits do not depend on beta, so a larger beta never has a smaller Icor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from fl.checks import at_least, within
from fl.data.column_correlation import correlations_of_parties, mean_beyond_inside, pcor, spearman
from fl.data.dataset import Dataset
from fl.data.partitioner import ColumnPartitioner
from fl.registry import register
from fl.tensors import random

EXHAUSTIVE = 10  # up to this number of columns all splits are compared


def beta_of(found: float, low: float, high: float) -> float:
    """Return beta of a split from its Icor and the smallest and largest Icor.

    >>> beta_of(0.25, low=0.0, high=1.0), beta_of(2.0, low=0.0, high=1.0)
    (0.25, 1.0)
    """
    return float(np.clip((found - low) / (high - low), 0, 1)) if high > low else 0.0


@dataclass(frozen=True)
class Splits:
    """Splits that are compared, and their Icor.

    Attributes:
        owners: party of each column, int64 (S, D).
        icor: of each split, (S,).
    """

    owners: np.ndarray
    icor: np.ndarray

    def nearest(self, beta: float) -> np.ndarray:
        """Return the owners (D,) of the split with the Icor nearest to beta max + (1 - beta) min."""
        order = np.argsort(self.icor, kind="stable")
        distance = np.abs(self.icor[order] - (beta * self.icor.max() + (1 - beta) * self.icor.min()))
        return self.owners[order[int(np.argmin(distance))]]


def splits_of(correlation: np.ndarray, parties: int, seed: int = 0, starts: int = 4, tries: int = 400) -> Splits:
    """Return the splits into parties of equal numbers of columns that are compared.

    Args:
        correlation: correlations of all columns, (D, D).
        parties: number of parties, 2..D.
        seed: seed of the search; not used up to 10 columns.
        starts: random splits from which the search starts, for each direction.
        tries: swaps that are tried from each start.
    """
    width = len(correlation)
    if parties > width:
        raise ValueError(f"parties: {parties} is more than the {width} columns of the data; each party needs one")
    sizes = [len(part) for part in np.array_split(np.arange(width), parties)]
    if width <= EXHAUSTIVE:
        owners = np.array(list(all_splits(sizes)))
        known: dict[tuple[bytes, bytes], float] = {}
        return Splits(owners, np.array([_known_icor(correlation, one, parties, known) for one in owners]))
    found = [
        pair
        for start in range(starts)
        for sign in (-1, 1)
        for pair in _climb(correlation, sizes, sign, random.numpy_generator(seed, "icor", start, sign), tries)
    ]
    return Splits(np.array([owners for owners, _ in found]), np.array([value for _, value in found]))


def all_splits(sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the owners (D,) of all splits with these numbers of columns. Parties of equal size may swap names: once.

    >>> [owners.tolist() for owners in all_splits([2, 2])]
    [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]]
    """
    owners = np.zeros(sum(sizes), np.int64)

    def place(party: int, free: tuple[int, ...], least: int) -> Iterator[np.ndarray]:
        if party == len(sizes):
            yield owners.copy()
            return
        for own in combinations(free, sizes[party]):
            if own[0] < least:
                continue
            owners[list(own)] = party
            rest = tuple(column for column in free if column not in own)
            same = party + 1 < len(sizes) and sizes[party + 1] == sizes[party]
            yield from place(party + 1, rest, own[0] if same else 0)

    yield from place(0, tuple(range(len(owners))), 0)


def _columns(owners: np.ndarray, parties: int) -> list[np.ndarray]:
    return [np.flatnonzero(owners == party) for party in range(parties)]


def _known_icor(
    correlation: np.ndarray, owners: np.ndarray, parties: int, known: dict[tuple[bytes, bytes], float]
) -> float:
    """Return Icor of a split. `known` keeps Pcor of pairs of parties, which many splits share."""
    columns, found = _columns(owners, parties), np.zeros((parties, parties))
    for i, own in enumerate(columns):
        for j in range(i, len(columns)):
            key = (own.tobytes(), columns[j].tobytes())
            if key not in known:
                known[key] = pcor(correlation[np.ix_(own, columns[j])])
            found[i, j] = found[j, i] = known[key]
    return mean_beyond_inside(found)


def _climb(
    correlation: np.ndarray, sizes: Sequence[int], sign: int, generator: np.random.Generator, tries: int
) -> Iterator[tuple[np.ndarray, float]]:
    """Yield all splits tried, with their Icor. A swap is kept if it moves Icor in the direction of `sign`."""
    parties = len(sizes)
    owners = np.repeat(np.arange(parties), sizes)[generator.permutation(sum(sizes))]
    pairs = correlations_of_parties(correlation, _columns(owners, parties))
    best = mean_beyond_inside(pairs)
    yield owners.copy(), best
    for _ in range(tries):
        a = int(generator.integers(len(owners)))
        others = np.flatnonzero(owners != owners[a])
        b = int(others[generator.integers(len(others))])
        swapped = owners.copy()
        swapped[[a, b]] = owners[[b, a]]
        columns, tried = _columns(swapped, parties), pairs.copy()
        for i in (int(owners[a]), int(owners[b])):
            for j in range(parties):
                tried[i, j] = tried[j, i] = pcor(correlation[np.ix_(columns[i], columns[j])])
        value = mean_beyond_inside(tried)
        yield swapped, value
        if sign * value > sign * best:
            owners, pairs, best = swapped, tried, value


def split_by_correlation(
    correlation: np.ndarray, parties: int, beta: float, seed: int = 0, starts: int = 4, tries: int = 400
) -> np.ndarray:
    """Return the party of each column, int64 (D,), for a wanted beta. `splits_of` explains the other arguments."""
    within("[0, 1]", beta=beta)
    matrix = np.ascontiguousarray(correlation, np.float64)
    return _splits_of_bytes(matrix.tobytes(), parties, seed, starts, tries).nearest(beta)


@functools.lru_cache(maxsize=4)
def _splits_of_bytes(matrix: bytes, parties: int, seed: int, starts: int, tries: int) -> Splits:
    """Return `splits_of` of a matrix, given as its float64 bytes; a run asks for the same splits several times."""
    flat = np.frombuffer(matrix)
    width = int(np.sqrt(len(flat)))
    return splits_of(flat.reshape(width, width), parties, seed, starts, tries)


@register("partition", "vertical_correlation")
@dataclass(frozen=True, kw_only=True)
class VerticalCorrelation(ColumnPartitioner):
    """Equal numbers of columns for each party, chosen by their rank correlations in the training rows.

    Wu, Hou, He 2023, arXiv:2307.02040. The data have to be vectors.

    Args:
        parties: Number of parties with the active one, at least 2.
        beta: In [0, 1]. 0: correlated columns belong to one party. 1: they are spread over the parties.
        starts: Random splits from which a search starts, at least 1; up to 10 columns all splits are compared.
        tries: Swaps of two columns that are tried from each start, at least 1.
        seed: Seed of the search and of the order of the parties, and of the choice of validation and test rows.
    """

    parties: int
    beta: float
    starts: int = 4
    tries: int = 400
    seed: int = 0

    example_config: ClassVar[dict[str, Any]] = {"partition.parties": 3, "partition.beta": 0.5}

    def __post_init__(self) -> None:
        at_least(2, parties=self.parties, hint="the active party and at least one other party")
        at_least(1, starts=self.starts, tries=self.tries)
        within("[0, 1]", beta=self.beta)

    def party_columns(self, dataset: Dataset) -> Sequence[np.ndarray]:
        x = dataset.train["x"]
        if x.ndim != 2:
            raise ValueError(f"name: samples of shape {x.shape[1:]} are not vectors; use the partition 'vertical'")
        owners = split_by_correlation(spearman(x), self.parties, self.beta, self.seed, self.starts, self.tries)
        order = random.permutation(self.parties, self.seed, "order of parties")
        return [np.flatnonzero(owners == party) for party in order]
