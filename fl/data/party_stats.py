"""Statistics of a partition of columns: how important the parties are, and how their columns correlate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.data.column_correlation import correlations_of_parties, mean_beyond_inside, spearman
from fl.data.column_importance import alpha_of, importance_of, linear_coefficients, linear_shapley
from fl.data.dataset import Dataset
from fl.data.partition import Partition

MOST_ROWS, MOST_COLUMNS = 5_000, 512  # for the statistics; columns beyond are left out of them


@dataclass(frozen=True)
class PartyStats:
    """Statistics of the parties, the active party first.

    Attributes:
        columns: numbers of the columns of each party.
        rows: numbers of training, validation and test rows, which all parties hold.
        importance: share of each party in the sum of |Shapley values| of a linear model, (P,).
        alpha: concentration of the Dirichlet distribution with the variance of these shares.
        correlation: Spearman correlations of the columns, ordered by party, (D, D).
        pairs: Pcor of each pair of parties, (P, P).
        icor: mean Pcor between parties beyond that inside parties.
        used: number of training rows from which the statistics are computed.
    """

    columns: tuple[np.ndarray, ...]
    rows: tuple[int, int, int]
    importance: np.ndarray
    alpha: float
    correlation: np.ndarray
    pairs: np.ndarray
    icor: float
    used: int

    @classmethod
    def of(cls, dataset: Dataset, partition: Partition) -> PartyStats:
        """Measure a data set whose columns are distributed, on its first training rows.

        Raises:
            ValueError: the parties have more than 512 numbers per row.
        """
        training = np.sort(partition.view_rows(0, "train"))[:MOST_ROWS]
        parts = [
            np.asarray(x[training], float).reshape(len(training), -1) for x in (dataset.train["x"], *dataset.parties)
        ]
        ends = np.cumsum([part.shape[1] for part in parts])
        if ends[-1] > MOST_COLUMNS:
            raise ValueError(
                f"partition: the statistics of {ends[-1]} numbers per row would take long; at most {MOST_COLUMNS} are "
                "measured"
            )
        own = np.split(np.arange(ends[-1]), ends[:-1])
        x = np.concatenate(parts, 1)
        x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
        importance = importance_of(_column_sizes(x, dataset.labels[training]), own)
        correlation = spearman(x)
        pairs = correlations_of_parties(correlation, own)
        views = (len(partition.view_rows(0, name)) for name in ("train", "val", "test"))
        train, val, test = views
        shares = importance / importance.sum() if importance.sum() else np.full(len(own), 1 / len(own))
        return cls(
            dataset.party_columns,
            (train, val, test),
            shares,
            alpha_of(shares),
            correlation,
            pairs,
            mean_beyond_inside(pairs),
            len(training),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by name; correlations between parties, not between columns."""
        return {
            "columns": [own.tolist() for own in self.columns],
            "rows": dict(zip(("train", "val", "test"), self.rows)),
            "importance": self.importance.tolist(),
            "alpha": self.alpha,
            "pcor": self.pairs.tolist(),
            "icor": self.icor,
            "used_rows": self.used,
        }


def _column_sizes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mean |Shapley value| (1, D) of each column in a linear model."""
    coefficients = linear_coefficients(x, y)
    sizes = [np.abs(linear_shapley(x[:, [j]], coefficients[[j]])).mean() for j in range(x.shape[1])]
    return np.array(sizes)[None]
